"""Bits per byte: the length of the code that the model and its tokenizer give to held-out text.

BPB = Σ_documents Σ_i −ln p(token_i | tokens before it in its window) / (ln 2 · Σ_documents bytes).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

END = "<eos>"
LOGITS_AT_ONCE = 1 << 22  # elements of the largest block of logits that the chunked head makes
POOL = 64  # batches of windows that are sorted by length together, so that little is spent on padding


@dataclass(frozen=True)
class BitsPerByte:
    """The code length of some documents. `nats` is the whole of it; `tokens` counts the end tokens too."""

    nats: float
    tokens: int
    bytes: int
    documents: int

    @property
    def value(self) -> float:
        """Bits for each byte of text."""
        return self.nats / (math.log(2) * self.bytes)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each scored token."""
        return self.bytes / self.tokens


@dataclass(frozen=True)
class _Window:
    ids: list[int]  # the inputs and, one further, the last target
    scored: int  # how many targets at the end belong to this window


def bits_per_byte(
    model: Any,
    tokenizer: Any,
    documents: Iterable[str | bytes],
    *,
    length: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
) -> BitsPerByte:
    """Score every token of every document once, the end token `<eos>` too.

    A document is read as `<eos>` (context alone), its tokens, `<eos>` (scored). Window k holds the `length`
    inputs from position k·stride on and scores its last `stride` targets; the first window scores all. So
    what a token sees depends on its position alone, and the sum is the length of a code that can be decoded.

    model: a `Decoder` (the head is then applied in chunks of rows), or any callable from ids [b t] to causal
      logits [b t v] or to an object with `.logits`.
    tokenizer: has `.encode(text)` and `.special_tokens["<eos>"]`; text is segmented by Viterbi.
    documents: texts; bytes are those of the text in UTF-8, the end token has none.
    length: inputs of a window; None is `model.config.max_length`.
    stride: 1 … length; None is `length` (each token is read once). Smaller strides give more context.
    batch_size: windows at once; it doesn't change the result.

    Raises ValueError for a tokenizer without `<eos>`, documents without a byte and numbers out of range.
    """
    length, stride = _window_sizes(model, length, stride, batch_size)
    if isinstance(documents, str | bytes):
        raise ValueError(
            f"documents is one {type(documents).__name__}; give a sequence of texts: "
            "bits_per_byte(model, tokenizer, [text])"
        )
    if END not in getattr(tokenizer, "special_tokens", {}):
        raise ValueError(
            f"tokenizer has no special token {END!r}, so no document could end; train it with "
            f"Tokenizer.train(…, special_tokens=[{END!r}])"
        )
    end = tokenizer.special_tokens[END]
    counts = {"tokens": 0, "bytes": 0, "documents": 0}

    def windows() -> Iterator[_Window]:
        for text in documents:
            counts["bytes"] += len(text.encode() if isinstance(text, str) else text)
            counts["documents"] += 1
            ids = [end, *tokenizer.encode(text), end]
            counts["tokens"] += len(ids) - 1
            yield from _cut(ids, length, stride)

    nats = math.fsum(_losses(model, windows(), end, batch_size))
    if counts["bytes"] == 0:
        raise ValueError(
            f"documents hold no bytes ({counts['documents']} documents): there is nothing to divide by"
        )
    return BitsPerByte(nats, **counts)


def _window_sizes(model: Any, length: int | None, stride: int | None, batch_size: int) -> tuple[int, int]:
    if length is None:
        length = getattr(getattr(model, "config", None), "max_length", None)
        if length is None:
            raise ValueError("length is None and the model has no config.max_length; give length=256, say")
    if length < 1:
        raise ValueError(f"length = {length}; a window holds at least one token: length >= 1")
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise ValueError(f"stride = {stride}; accepted is 1 … length = {length}, or None for length")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}; accepted is 1 or more")
    return length, stride


def _cut(ids: list[int], length: int, stride: int) -> Iterator[_Window]:
    targets = len(ids) - 1
    start, scored = 0, 0
    while scored < targets:
        stop = min(start + length, targets)
        yield _Window(ids[start : stop + 1], stop - scored)
        start, scored = start + stride, stop


def _losses(model: Any, windows: Iterator[_Window], pad: int, batch_size: int) -> Iterator[float]:
    """The loss of each batch, in nats."""
    training = getattr(model, "training", False)
    if training:
        model.eval()
    try:
        pool: list[_Window] = []
        for window in windows:
            pool.append(window)
            if len(pool) == POOL * batch_size:
                yield from _pool_losses(model, pool, pad, batch_size)
                pool = []
        yield from _pool_losses(model, pool, pad, batch_size)
    finally:
        if training:
            model.train()


def _pool_losses(model: Any, pool: list[_Window], pad: int, batch_size: int) -> Iterator[float]:
    pool = sorted(pool, key=lambda window: len(window.ids))
    for first in range(0, len(pool), batch_size):
        batch = pool[first : first + batch_size]
        width = len(batch[-1].ids)
        # Padding stands on the right: a causal model never looks at it.
        ids = torch.tensor([w.ids + [pad] * (width - len(w.ids)) for w in batch])
        scored = torch.zeros(len(batch), width - 1, dtype=torch.bool)
        for row, window in enumerate(batch):
            stop = len(window.ids) - 1
            scored[row, stop - window.scored : stop] = True
        yield _nats(model, ids[:, :-1], ids[:, 1:], scored)


@torch.inference_mode()
def _nats(model: Any, ids: Int[Tensor, "b t"], targets: Int[Tensor, "b t"], scored: Tensor) -> float:
    device = _device(model)
    ids, wanted, scored = ids.to(device), targets.to(device)[scored.to(device)], scored.to(device)
    if hasattr(model, "hidden") and hasattr(model, "head"):
        rows, head = model.hidden(ids).h[scored], model.head
        step = max(1, LOGITS_AT_ONCE // head.shape[0])
        parts = [
            _cross_entropy(rows[i : i + step] @ head.T, wanted[i : i + step])
            for i in range(0, len(rows), step)
        ]
        return math.fsum(parts)
    output = model(ids)
    logits = output if isinstance(output, Tensor) else output.logits
    return _cross_entropy(logits[scored], wanted)


def _cross_entropy(logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> float:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return float(F.cross_entropy(wide, targets, reduction="none").double().sum())


def _device(model: Any) -> torch.device:
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return torch.device("cpu")
