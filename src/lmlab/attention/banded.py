"""`attend`: causal softmax attention with rotary positions under any length extension."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lmlab.attention.band import band_of
from lmlab.attention.onepass import attend_one_pass
from lmlab.attention.parts import rotated_parts
from lmlab.attention.rows import attend_rows
from lmlab.rope import Extension, Rotary, Window, as_extension
from lmlab.rope.band import BandMethod
from lmlab.rope.frequency import FrequencyMethod
from lmlab.rope.logit import ALiBi, CosA, KeyNorm, LogN, Temperature

_FEW_ROWS = 16  # up to here a step forms its logits directly: nothing is gained by packing the keys


def attend(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b hk T d"],
    v: Float[Tensor, "b hk T d"],
    *,
    rotary: Rotary | None = None,
    extension: Any = None,
    scale: float | Tensor | Callable[..., Tensor] | None = None,
    offset: int | Tensor = 0,
    length: int | None = None,
) -> Float[Tensor, "b h t d"]:
    """Causal attention of the last t of T positions; q and k come un-rotated, as the cache holds them.

    rotary: how the model was trained, None for a model without rotary positions. extension: a method, an
    Extension, a list of methods or None (`lmlab.rope`). h is a multiple of hk: query head x uses key head
    ⌊x·hk/h⌋. Memory is O(T d).
    scale: multiplier of q·k: None (d^−½, 1 under KeyNorm and CosA), a number, a tensor broadcast to
    [b, h, t], or a rule called with n (the number of keys each row sees) and head_dim.
    offset: position of q[0], which must be T − t; an int64 tensor [b] for ragged decoding: row b stands at
    offset_b and sees keys j < offset_b + t only.
    length: the number of keys n that methods with factor=None and the dynamic ones follow, fixed for a whole
    turn (n ≥ T); None is T (offset_b + t).
    Raises ValueError, TypeError for what does not fit, naming the argument.
    """
    extension = as_extension(extension)
    _check(q, k, v, rotary, extension, offset, length)
    _check_scale(scale, q)
    b, h, t, _ = q.shape
    keys = k.shape[2]
    if t == 0 or b == 0:
        return torch.empty_like(q)
    # positions stay on the CPU: what depends on them is decided without waiting for a device
    start = offset.cpu() if isinstance(offset, Tensor) else torch.tensor(keys - t)
    positions = start[..., None] + torch.arange(t)  # [t], or [b t] when ragged

    method, band = band_of(extension, keys)
    theta, stretch = _angles(rotary, extension, start + t if length is None else torch.tensor(length))
    q, k, scale = _scaled(q, k, scale, rotary, extension, positions, stretch)

    alibi = extension.find(ALiBi)
    slopes = None if alibi is None else torch.tensor(alibi.for_heads(h), dtype=torch.float64, device=q.device)
    step = t <= _FEW_ROWS and t < keys
    spans = [(0, keys)] * band.parts
    if step:
        first, last = int(positions.min()), int(positions.max())
        spans = [band.columns(part, first, last, keys) for part in range(band.parts)]
    queries, copies = rotated_parts(method, q, k, positions, rotary, theta, spans)
    stock = q.device.type != "cpu" or q.dtype not in (torch.float32, torch.float64)
    if stock and band.kind == "plain" and slopes is None and t == keys and not isinstance(offset, Tensor):
        return torch.nn.functional.scaled_dot_product_attention(
            queries[0], copies[0], v, is_causal=True, scale=scale, enable_gqa=h != k.shape[1]
        )
    if step or q.device.type != "cpu":
        starts = [start for start, _ in spans]
        return attend_rows(
            queries, copies, v, band=band, positions=positions, starts=starts, slopes=slopes, scale=scale
        )
    return attend_one_pass(
        queries, copies, v, band=band, start=start.expand(b).contiguous(), slopes=slopes, scale=scale
    )


def _angles(rotary: Rotary | None, extension: Extension, n: Tensor) -> tuple[Tensor | None, Tensor | float]:
    """θ' [f] and the extension's factor a; [b f] and [b 1 1] where rows of a ragged batch differ in n."""
    if rotary is None:
        return None, 1.0
    trained = rotary.angles()
    method = extension.find(FrequencyMethod)
    if method is None:
        return torch.tensor(trained, dtype=torch.float64), 1.0
    counts = n.tolist() if n.ndim and method.depends_on_length else [int(n.max())]
    found = [method.angles(trained, rotary.base, rotary.train_length, count) for count in counts]
    theta = torch.tensor([angles for angles, _ in found], dtype=torch.float64)
    factors = [a for _, a in found]
    if len(set(counts)) == 1:
        return theta[0], factors[0]
    return theta, torch.tensor(factors, dtype=torch.float64)[:, None, None]


def _scaled(
    q: Tensor,
    k: Tensor,
    scale: float | Tensor | Callable[..., Tensor] | None,
    rotary: Rotary | None,
    extension: Extension,
    positions: Tensor,
    stretch: Tensor | float,
) -> tuple[Tensor, Tensor, float]:
    """q and k with norms, and every factor of a row multiplied into q; and the number left as scale."""
    d = q.shape[-1]
    train_length = rotary.train_length if rotary is not None else 0
    rank = positions.to(torch.float64) + 1
    factor: Tensor | float = stretch**2  # broadcasts to [b h t]
    number = d**-0.5
    for method in extension.methods:
        match method:
            case LogN(train_length=given, clip=clip):
                log_n = rank.log() / math.log(given or train_length)
                factor = factor * _by_row(log_n.clamp(min=1) if clip else log_n)
            case Temperature(factor=temperature):
                factor = factor * temperature
            case KeyNorm():
                k, number = _unit(k), 1.0
            case CosA(n=n):
                q, k, number = _unit(q), _unit(k), 1.0
                if n == "position":
                    factor = factor * _by_row(4 * rank.log())
                else:
                    factor = factor * 4 * math.log(train_length / 2 if n is None else n)
    if isinstance(factor, Tensor):
        factor = factor.to(q.device) if bool((factor != 1).any()) else 1.0
    if isinstance(scale, Tensor):
        factor, number = factor * scale, 1.0
    elif callable(scale):
        factor, number = factor * _by_rule(scale, d, extension, positions.to(q.device)), 1.0
    elif scale is not None:
        number = float(scale)
    if isinstance(factor, Tensor):
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        q = (q * factor.to(q.device, wide).expand(q.shape[:3])[..., None]).to(q.dtype)
    else:
        number *= factor
    return q, k, number


def _by_row(x: Tensor) -> Tensor:
    """[t] or [b t] -> what broadcasts to [b h t]."""
    return x if x.ndim == 1 else x[:, None]


def _by_rule(rule: Callable[..., Tensor], head_dim: int, extension: Extension, positions: Tensor) -> Tensor:
    """The rule's multiplier [t], [h t], [b 1 t] or [b h t], from the number of keys that each row sees."""
    n = positions.to(torch.float64) + 1
    window = extension.find(Window)
    if window is not None:
        n = n.clamp(max=window.window + window.sinks)
    values = rule(n.reshape(-1), head_dim=head_dim)
    if positions.ndim == 1:
        return values
    return (
        values.reshape(*values.shape[:-1], *positions.shape)
        .movedim(-2, 0)
        .reshape(positions.shape[0], -1, positions.shape[1])
    )


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1, eps=1e-12)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: Rotary | None,
    extension: Extension,
    offset: int | Tensor,
    length: int | None,
) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} must have shape [batch, heads, time, dim], got {tuple(x.shape)}")
    if k.shape != v.shape:
        raise ValueError(f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    b, h, t, d = q.shape
    keys = k.shape[2]
    if k.shape[0] != b or k.shape[3] != d:
        raise ValueError(f"k must have q's batch {b} and dim {d}, got shape {tuple(k.shape)}")
    if k.shape[1] == 0 or h % k.shape[1]:
        raise ValueError(f"q's heads must be a multiple of k's: q has {h}, k has {k.shape[1]}")
    if isinstance(offset, Tensor):
        if offset.shape != (b,) or offset.dtype != torch.int64:
            raise ValueError(
                f"offset must be a number or an int64 tensor of shape ({b},), "
                f"got {offset.dtype} {tuple(offset.shape)}"
            )
        if b and (int(offset.min()) < 0 or int(offset.max()) + t > keys):
            raise ValueError(
                f"offset must be between 0 and {keys - t} (keys {keys} − queries {t}) in every row, "
                f"got {offset.tolist()}"
            )
    elif offset != keys - t:
        raise ValueError(f"offset must be {keys - t} (keys {keys} − queries {t}), got {offset}")
    if length is not None and length < keys:
        raise ValueError(f"length must be at least the number of keys {keys}, got {length}")
    if rotary is not None and rotary.dim > d:
        raise ValueError(f"rotary.dim must be at most the head dim {d}, got {rotary.dim}")
    if rotary is not None:
        return
    for method in extension.methods:
        if isinstance(method, FrequencyMethod | BandMethod) and not isinstance(method, Window):
            raise ValueError(f"{method} changes rotary positions: pass rotary=Rotary(dim={d - d % 2}, …)")
        if isinstance(method, LogN) and method.train_length is None:
            raise ValueError("LogN needs a train length: LogN(train_length=2048), or pass rotary")
        if isinstance(method, CosA) and method.n is None:
            raise ValueError('CosA needs a train length: pass rotary, or CosA(n=1024) or CosA(n="position")')


def _check_scale(scale: object, q: Tensor) -> None:
    if isinstance(scale, Tensor):
        try:
            scale.expand(q.shape[:3])
        except RuntimeError:
            raise ValueError(
                f"scale must broadcast to {tuple(q.shape[:3])}, got {tuple(scale.shape)}"
            ) from None
    elif isinstance(scale, type | str | bool) or not (
        scale is None or isinstance(scale, int | float) or callable(scale)
    ):
        raise TypeError(
            f"scale must be None, a number, a tensor or a rule object such as InverseSqrt(), got {scale!r}"
        )
