"""What goes on inside a trained model: how its heads spread their weight, how its codes are used, what it keeps.

Each number answers a question that bits per byte leave open. Do the trained logits sit where the theory of
the attention scale puts them? Are the codes of a quantised key alive, and does the far past that they stand
for help at all? Can the trained cell be solved for all steps at once? How many bytes of state does a longer
text cost?
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from lmlab.attention import VQAttention
    from lmlab.model import Decoder
    from lmlab.model.attention import Attention

QUERIES = 16  # the last ones of each row: they see nearly all of it
ROWS = 4  # at a time
STEPS = 128  # of a recurrent cell that are solved at once
SWEEPS = 48
SOLVERS = ("jacobi", "quasi", "newton")
LENGTHS = (1, 4, 16)  # of the state, times the trained length


def inside(model: Decoder, ids: Int[Tensor, "n t"], trained: int) -> dict[str, Any]:
    """Plain values for a report. `ids`: rows of held-out tokens, as long as the model was trained on."""
    return {
        "keys": ids.shape[1],
        "heads": head_measures(model, ids),
        "codes": code_measures(model, ids),
        "recurrent": solver_measures(model, ids),
        "state": [
            {"length": trained * k, "bytes": int(model.init_state(1, trained * k).nbytes)} for k in LENGTHS
        ],
    }


# --- softmax heads ------------------------------------------------------------------------------------------


@torch.no_grad()
def head_measures(model: Decoder, ids: Int[Tensor, "n t"]) -> list[dict[str, Any]]:
    """Of each head of the attention layers, means over the last queries: the deviation of its logits, which is
    its factor alpha on logits of unit variance, the row measure alpha (1 - sum p^2), and the entropy of its
    weights as a share of ln n."""
    from lmlab.attention import row_gradient
    from lmlab.model.attention import Attention

    sums: dict[tuple[int, int], Tensor] = {}
    count = 0
    layers = [(i, m) for i, m in enumerate(mixers(model)) if isinstance(m, Attention)]
    for rows in torch.split(ids, ROWS):
        taken = _inputs(model, rows, [m for _, m in layers])
        for (layer, mixer), x in zip(layers, taken, strict=True):
            weights = attention_weights(mixer, x)  # [b h q n]
            seen = weights > 0
            logits = weights.log()
            n = seen.sum(-1)
            mean = logits.masked_fill(~seen, 0.0).sum(-1) / n
            spread = (logits - mean[..., None]).masked_fill(~seen, 0.0).square().sum(-1) / n
            alpha = spread.sqrt()
            entropy = -torch.xlogy(weights, weights).sum(-1) / n.clamp(min=2).log()
            measured = torch.stack([alpha, alpha * row_gradient(logits), entropy]).mean(-1).sum(1)  # [3 h]
            for head, found in enumerate(measured.T):
                sums[layer, head] = sums.get((layer, head), torch.zeros_like(found)) + found
        count += len(rows)
    return [
        {"layer": layer, "head": head}
        | dict(zip(("alpha", "measure", "entropy"), (total / count).tolist(), strict=True))
        for (layer, head), total in sums.items()
    ]


def attention_weights(mixer: Attention, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h q t"]:
    """The weights of the last queries, in float64 and under the layer's own positions and scale: what
    attention gives for values that are unit vectors."""
    from lmlab.attention import attend
    from lmlab.model.ops import add_norm

    b, t, _ = x.shape
    qkv = mixer.qkv(x).view(b, t, -1, mixer.width)
    q, k, _ = qkv.split((mixer.heads, mixer.kv_heads, mixer.kv_heads), dim=2)
    if mixer.q_gain is not None and mixer.k_gain is not None:
        q = add_norm(q, None, mixer.q_gain, mixer.eps, q.dtype)[1]
        k = add_norm(k, None, mixer.k_gain, mixer.eps, k.dtype)[1]
    q, k = q.transpose(1, 2).double(), k.transpose(1, 2).double()
    first = max(0, t - QUERIES)
    units = torch.eye(t, -(-t // mixer.width) * mixer.width, dtype=torch.float64, device=x.device)
    parts = [
        attend(
            q[:, :, first:],
            k,
            some.expand(b, mixer.kv_heads, -1, -1),
            rotary=mixer.rotary,
            extension=mixer.extension,
            scale=mixer.scale,
            offset=first,
        )
        for some in units.split(mixer.width, 1)  # values are as wide as keys
    ]
    return torch.cat(parts, -1)[..., :t]


# --- quantised keys -----------------------------------------------------------------------------------------


@torch.no_grad()
def code_measures(model: Decoder, ids: Int[Tensor, "n t"]) -> dict[str, Any] | None:
    """Health of the codebooks on held-out keys, layer by layer, and the loss without the far past (only keys
    within the window) beside the whole one; None for a model without quantised keys."""
    from lmlab.attention import VQAttention, step_codebooks

    layers = [(i, m) for i, m in enumerate(mixers(model)) if isinstance(m, VQAttention)]
    if not layers:
        return None
    probe = copy.deepcopy(model).train()
    for rows in torch.split(ids, ROWS):
        probe.hidden(rows)
    health = [stats.mean() for stats in step_codebooks(probe).values()]
    names = ("alive", "perplexity", "relative_error")
    return {
        "layers": [
            {"layer": layer, "codes": mixer.options.codes}
            | {name: float(getattr(one, name)) for name in names}
            for (layer, mixer), one in zip(layers, health, strict=True)
        ],
        "loss": mean_loss(model, ids),
        "local_loss": _local_loss(model, ids, [mixer for _, mixer in layers]),
    }


def _local_loss(model: Decoder, ids: Int[Tensor, "n t"], layers: list[VQAttention]) -> float | None:
    if any(mixer.options.position == "none" for mixer in layers):
        return None  # without a window there is nothing but the far past
    for mixer in layers:
        mixer.forward = local_only(mixer)  # type: ignore[method-assign]
    try:
        return mean_loss(model, ids)
    finally:
        for mixer in layers:
            del mixer.forward


def local_only(mixer: VQAttention) -> Callable[..., Any]:
    """The layer's forward with nothing but the keys of its window: quantised as they are, the far ones gone."""
    from lmlab.attention import attend
    from lmlab.attention.vq.module import _unit_rms as unit
    from lmlab.rope import Window

    options = mixer.options

    def forward(x: Tensor, state: None = None) -> tuple[Tensor, None, None]:
        b, t, _ = x.shape
        parts = mixer.qkv(x).split(mixer.widths, -1)
        q, k, v = (part.view(b, t, -1, mixer.head_dim).transpose(1, 2) for part in parts[:3])
        if options.normalise:
            q, k = unit(q), unit(k)
        k, v = mixer.codebook(k)[0], torch.nn.functional.silu(v)
        if mixer.bias is None:
            o = attend(q, k, v, rotary=mixer.rotary, extension=Window(options.window), scale=mixer.scale)
        else:
            o = _banded(mixer, q, k, v)
        o = o.transpose(1, 2).reshape(b, t, -1)
        if options.gate:
            o = o * torch.nn.functional.silu(parts[3])
        return mixer.out(o), None, None

    return forward


def _banded(mixer: VQAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax over the window of m q.k + B[i - j], by the whole [t t] matrix: a few short rows."""
    assert mixer.bias is not None
    t, group = q.shape[2], mixer.heads // mixer.kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    seen = torch.arange(1, t + 1, dtype=q.dtype)
    scale = mixer.scale if isinstance(mixer.scale, float) else mixer.scale(seen, head_dim=mixer.head_dim)
    factor = torch.as_tensor(scale, dtype=q.dtype)
    back = torch.arange(t)[:, None] - torch.arange(t)
    bias = mixer.bias[:, back.clamp(0, mixer.options.window - 1)]
    logits = (q * factor[..., None]) @ k.transpose(-1, -2) + bias
    outside = (back < 0) | (back >= mixer.options.window)
    mixed: Tensor = logits.masked_fill(outside, float("-inf")).softmax(-1) @ v
    return mixed


# --- recurrent cells ----------------------------------------------------------------------------------------


def solver_measures(model: Decoder, ids: Int[Tensor, "n t"]) -> list[dict[str, Any]]:
    """Of each recurrent layer: how two nearby paths move apart on a held-out row (Lyapunov exponent), and what
    that means for solving all its steps at once: the error after each sweep of each method. Of the first one
    also what its recurrent weights, were they larger, and the length of the text change."""
    from lmlab.lab.steps.solving import by_gain, by_length
    from lmlab.model.mixers import RecurrentMixer
    from lmlab.recurrent import convergence, lyapunov

    layers = [(i, m) for i, m in enumerate(mixers(model)) if isinstance(m, RecurrentMixer)]
    found: list[dict[str, Any]] = []
    with torch.no_grad():
        taken = _inputs(model, ids[:1, :STEPS], [m for _, m in layers]) if layers else []
        for (layer, mixer), x in zip(layers, taken, strict=True):
            told = lyapunov(mixer.cell, x)
            rows = convergence(mixer.cell, x, methods=SOLVERS, max_iter=SWEEPS)
            found.append(
                {
                    "layer": layer,
                    "steps": x.shape[1],
                    "exponent": float(told.exponent[0]),
                    "verdict": told.verdict,
                    "sweeps": [
                        {k: row[k] for k in ("method", "iteration", "error", "exact_prefix")} for row in rows
                    ],
                    **(
                        {}
                        if found
                        else {"by_gain": by_gain(mixer.cell, x), "by_length": by_length(mixer.cell, x)}
                    ),
                }
            )
    return found


# --- both ---------------------------------------------------------------------------------------------------


def mixers(model: Decoder) -> list[Any]:
    return [block.mixer for block in model.blocks]


def mean_loss(model: Decoder, ids: Int[Tensor, "n t"]) -> float:
    """Nats a token, over all tokens but the first of each row."""
    total = 0.0
    for rows in torch.split(ids, ROWS):
        logits = model(rows)[:, :-1].flatten(0, 1).float()
        total += float(torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum"))
    return total / (ids[:, 1:].numel() or 1)


def _inputs(model: Decoder, rows: Tensor, layers: list[Any]) -> list[Tensor]:
    """What goes into these mixers when the model reads `rows`."""
    taken: dict[Any, Tensor] = {}

    def take(module: Any, arguments: tuple[Tensor, ...]) -> None:
        taken[module] = arguments[0]

    handles = [layer.register_forward_pre_hook(take) for layer in layers]
    try:
        model.hidden(rows)
    finally:
        for handle in handles:
            handle.remove()
    return [taken[layer] for layer in layers]
