"""Rotary positions (RoPE, arXiv 2104.09864): how a model was trained, its angles, and the rotation itself."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lmlab._native import rope as native
from lmlab.rope.compose import as_extension
from lmlab.rope.frequency import FrequencyMethod


@dataclass(frozen=True)
class Rotary:
    """How a model was trained: pair m of the first `dim` dims turns by θ_m = base^(−2m/dim) a position.

    `train_length` is T₀. A pair is (x_m, x_{m+dim/2}), or (x_{2m}, x_{2m+1}) when `interleaved`. `inv_freq`
    (dim/2 numbers) overrides the angles, `attention_factor` multiplies rotated queries and keys: a model that
    was shipped with its own YaRN has both.
    """

    dim: int
    base: float = 10000.0
    train_length: int = 2048
    interleaved: bool = False
    inv_freq: tuple[float, ...] | None = None
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or self.dim < 2 or self.dim % 2:
            raise ValueError(f"Rotary: dim must be an even integer >= 2, got {self.dim!r}")
        if not isinstance(self.train_length, int) or self.train_length < 2:
            raise ValueError(f"Rotary: train_length must be an integer >= 2, got {self.train_length!r}")
        for name in ("base", "attention_factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"Rotary: {name} must be a number > 0, got {value!r}")
            object.__setattr__(self, name, float(value))
        if self.inv_freq is not None:
            inv_freq = tuple(float(x) for x in self.inv_freq)
            if len(inv_freq) != self.dim // 2:
                raise ValueError(
                    f"Rotary: inv_freq must have {self.dim // 2} numbers (dim/2), got {len(inv_freq)}"
                )
            object.__setattr__(self, "inv_freq", inv_freq)

    def angles(self) -> list[float]:
        """θ_m as trained."""
        if self.inv_freq is not None:
            return list(self.inv_freq)
        return [self.base ** (-2 * m / self.dim) for m in range(self.dim // 2)]


def frequencies(
    rotary: Rotary, extension: Any = None, *, length: int | None = None
) -> tuple[Float[Tensor, " half"], float]:
    """θ' [dim/2] in float64 and the factor a (logits are multiplied by a²) under `extension`.

    `length` is the number n of keys, which methods with factor=None and the dynamic ones follow: None is
    T₀."""
    theta, a = rotary.angles(), rotary.attention_factor
    method = as_extension(extension).find(FrequencyMethod)
    if method is not None:
        n = rotary.train_length if length is None else length
        theta, factor = method.angles(theta, rotary.base, rotary.train_length, n)
        a *= factor
    return torch.tensor(theta, dtype=torch.float64), a


def rotate(
    x: Float[Tensor, "b h t d"],
    positions: Shaped[Tensor, " t"] | Shaped[Tensor, "b t"],
    inv_freq: Float[Tensor, " half"],
    *,
    interleaved: bool = False,
) -> Float[Tensor, "b h t d"]:
    """x with the pairs of its first 2·len(inv_freq) dims turned by positions · inv_freq; the rest as it is.

    Positions may be fractions. Angles are float64, the turning is float32 (float64 for float64 x), the
    result has x's dtype. Raises ValueError where x is narrower than the rotary dims or positions don't fit.
    """
    if 2 * inv_freq.shape[0] > x.shape[-1]:
        raise ValueError(
            f"x must have at least {2 * inv_freq.shape[0]} dims (2·len(inv_freq)), got {x.shape[-1]}"
        )
    b, t = x.shape[0], x.shape[2]
    if positions.shape not in ((t,), (b, t)):
        raise ValueError(f"positions must have shape ({t},) or ({b}, {t}), got {tuple(positions.shape)}")
    return turn(x, *tables(positions, inv_freq, x), interleaved=interleaved)


def tables(
    positions: Shaped[Tensor, "*t"], inv_freq: Float[Tensor, "*b f"], like: Tensor
) -> tuple[Tensor, Tensor]:
    """cos and sin [t f] or [b t f] on the device of `like`, ready for `turn`.

    The angles are never below 64 bits: at position 10⁶ a float32 angle is off by 0.03."""
    device = like.device
    theta = inv_freq.to(device, torch.float64)
    angles = positions.to(device, torch.float64)[..., None] * (theta if theta.ndim == 1 else theta[:, None])
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """x [b h t d] with its first 2f dims turned by the tables [t f] or [b t f]."""
    if cos.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]
    result: Tensor = _Turn.apply(x, cos, sin, interleaved)
    return result


class _Turn(torch.autograd.Function):
    """The rotation; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turned(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        back = _Turn.apply(grads[0], cos, -sin, ctx.interleaved)
        return back, None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    wide = x.to(cos.dtype)
    out = torch.empty(wide.shape, dtype=wide.dtype, device=wide.device)
    if wide.device.type == "cpu":
        if wide.stride(-1) != 1:
            wide = wide.contiguous()
        # tables [t f] or [b 1 t f] -> [b or 1, t or 1, f]
        cos, sin = (table.flatten(0, -3) if table.ndim > 2 else table[None] for table in (cos, sin))
        native.rotate(
            wide.detach(),
            cos.contiguous(),
            sin.contiguous(),
            out,
            interleaved=interleaved,
            threads=torch.get_num_threads(),
        )
        return out.to(x.dtype)
    return _turned_by_torch(wide, cos, sin, interleaved, out).to(x.dtype)


def _turned_by_torch(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, out: Tensor) -> Tensor:
    """The same for every device."""
    half = cos.shape[-1]
    first, second = _pairs(x, half, interleaved)
    out_first, out_second = _pairs(out, half, interleaved)
    # two rounded products each, not a fused one: bit for bit what models that rotate by themselves compute
    torch.mul(first, cos, out=out_first).sub_(second * sin)
    torch.mul(second, cos, out=out_second).add_(first * sin)
    out[..., 2 * half :] = x[..., 2 * half :]
    return out


def _pairs(x: Tensor, half: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    if interleaved:
        return x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    return x[..., :half], x[..., half : 2 * half]
