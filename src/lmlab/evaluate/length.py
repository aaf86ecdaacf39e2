"""Does a model use a long context? Losses against length.

A model is a callable f(ids [b t]) that returns logits [b t v], or an object with `.logits`; `length_table`
calls f(ids, extension=e). Losses are nats a token. A stable loss alone does not mean that the context is
used: see gain and over_window of `length_table`.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lmlab.rope import Extension, Window, as_extension, warn_length

Model = Callable[..., Any]


@dataclass(frozen=True)
class ContextLoss:
    """Mean loss of the same last `targets` targets when the model sees `context` tokens; `stderr` is over
    documents (NaN for one document). `by_document`: each one's mean, for differences between methods."""

    context: int
    loss: float
    stderr: float
    targets: int
    by_document: tuple[float, ...] = ()


@dataclass(frozen=True)
class PositionLoss:
    """Mean loss of the targets start ≤ index < stop; target 0 is ids[:, 1]."""

    start: int
    stop: int
    loss: float


@dataclass(frozen=True)
class LengthRow:
    """A method's losses, one a context.

    tax: its loss at the largest context ≤ train_length, less that of the plain model. gain: that loss less
    the loss at the longest context: what the longer context brings. over_window: loss less the window row's
    at the longest context (negative: better than forgetting). identical: bitwise the plain logits within the
    trained length.
    """

    method: str
    extension: Extension
    losses: tuple[ContextLoss, ...]
    tax: float
    gain: float
    over_window: float
    identical: bool


def loss_by_context(
    model: Model, ids: Int[Tensor, "n t"], *, contexts: Sequence[int], last: int = 64, batch: int = 8
) -> list[ContextLoss]:
    """The fixed-last-segment test: the loss of each document's last `last` tokens, given c tokens before its
    end (input ids[:, −(c+1):−1]) for every c in contexts."""
    _check_contexts(ids, contexts, last, batch)
    return [_context_loss(model, ids, context, last, batch)[0] for context in contexts]


def loss_by_position(
    model: Model, ids: Int[Tensor, "n t"], *, edges: Sequence[int], batch: int = 8
) -> list[PositionLoss]:
    """Mean loss between successive `edges` of target positions, from one pass over ids[:, :edges[-1]+1]."""
    targets = ids.shape[1] - 1
    if len(edges) < 2 or list(edges) != sorted(set(edges)) or edges[0] < 0 or edges[-1] > targets:
        raise ValueError(
            f"edges must be two or more increasing numbers, 0 to {targets} (tokens − 1), got {list(edges)}"
        )
    _check_batch(ids, batch)
    total = torch.zeros(edges[-1], dtype=torch.float64)
    for rows in torch.split(ids, batch):
        logits = logits_of(model, rows[:, : edges[-1]])
        total += _losses(logits, rows[:, 1 : edges[-1] + 1]).sum(dim=0)
    mean = total / ids.shape[0]
    return [
        PositionLoss(start, stop, float(mean[start:stop].mean())) for start, stop in itertools.pairwise(edges)
    ]


def length_table(
    model: Model,
    ids: Int[Tensor, "n t"],
    extensions: Mapping[str, Any],
    *,
    train_length: int,
    contexts: Sequence[int],
    last: int = 64,
    batch: int = 8,
    window: int | None = None,
) -> list[LengthRow]:
    """`loss_by_context` for every extension, after the rows `none` and `window` (Window(window or
    train_length)): the model as it is, and the baseline that forgets."""
    _check_contexts(ids, contexts, last, batch)
    within = [c for c in contexts if c <= train_length]
    if not within:
        raise ValueError(
            f"contexts must hold one that is at most train_length {train_length}, got {list(contexts)}"
        )
    short, longest = max(within), max(contexts)
    for name in ("none", "window"):
        if name in extensions:
            raise ValueError(f"extensions must not name {name!r}: that row is always there")
    methods = {"none": Extension(), "window": as_extension(Window(window or train_length))}
    methods |= {name: as_extension(extension) for name, extension in extensions.items()}

    losses: dict[str, dict[int, ContextLoss]] = {}
    digests: dict[str, str] = {}
    for name, extension in methods.items():
        if name in extensions:
            warn_length(extension, train_length, longest)

        def run(rows: Tensor, extension: Extension = extension) -> Any:
            return model(rows, extension=extension)

        found = {
            context: _context_loss(run, ids, context, last, batch, digest=context == short)
            for context in contexts
        }
        losses[name] = {context: loss for context, (loss, _) in found.items()}
        digests[name] = found[short][1]
    return [
        LengthRow(
            method=name,
            extension=extension,
            losses=tuple(losses[name][context] for context in contexts),
            tax=losses[name][short].loss - losses["none"][short].loss,
            gain=losses[name][short].loss - losses[name][longest].loss,
            over_window=losses[name][longest].loss - losses["window"][longest].loss,
            identical=digests[name] == digests["none"],
        )
        for name, extension in methods.items()
    ]


def _context_loss(
    model: Model, ids: Tensor, context: int, last: int, batch: int, digest: bool = False
) -> tuple[ContextLoss, str]:
    """The loss at one context, and a digest of all logits where it is asked for."""
    seen = hashlib.sha256()
    means = []
    for rows in torch.split(ids, batch):
        logits = logits_of(model, rows[:, -(context + 1) : -1])
        if digest:
            seen.update(logits.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        means.append(_losses(logits[:, -last:], rows[:, -last:]).mean(dim=1))
    by_document = torch.cat(means)
    count = len(by_document)
    stderr = float(by_document.std()) / math.sqrt(count) if count > 1 else math.nan
    single = tuple(by_document.tolist())
    return ContextLoss(context, float(by_document.mean()), stderr, count * last, single), seen.hexdigest()


@torch.no_grad()
def logits_of(model: Model, ids: Tensor) -> Tensor:
    out = model(ids)
    logits: Tensor = out if isinstance(out, Tensor) else out.logits
    if logits.shape[:2] != ids.shape:
        raise ValueError(
            f"model must return logits [{ids.shape[0]}, {ids.shape[1]}, vocab], got {tuple(logits.shape)}"
        )
    return logits


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of every target [b t], in float64 on the CPU."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = torch.nn.functional.cross_entropy(
        wide.flatten(0, 1), targets.to(logits.device).flatten(), reduction="none"
    )
    return losses.view(targets.shape).double().cpu()


def _check_batch(ids: Tensor, batch: int) -> None:
    if ids.ndim != 2 or ids.shape[0] < 1:
        raise ValueError(
            f"ids must have shape [documents, tokens] with a document or more, got {tuple(ids.shape)}"
        )
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")


def _check_contexts(ids: Tensor, contexts: Sequence[int], last: int, batch: int) -> None:
    _check_batch(ids, batch)
    if last < 1:
        raise ValueError(f"last must be >= 1, got {last}")
    if not contexts:
        raise ValueError("contexts must hold one number of tokens or more, got none")
    longest = ids.shape[1] - 1
    for context in contexts:
        if not last <= context <= longest:
            raise ValueError(
                f"contexts must be between last {last} and {longest} (the tokens of ids − 1), got {context}"
            )
