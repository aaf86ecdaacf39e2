"""The decoder's element-wise arithmetic as pure functions on tensors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lmlab.model import kernels


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Float[Tensor, "... d"], gain: Float[Tensor, " d"], eps: float) -> Float[Tensor, "... d"]:
    """gain ⊙ x / sqrt(mean(x²) + eps) over the last axis, in float32 or wider; the result has x's dtype."""
    wide = x.to(accumulation_dtype(x.dtype))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * gain).to(x.dtype)


def add_norm(
    x: Float[Tensor, "... d"],
    delta: Float[Tensor, "... d"] | None,
    gain: Float[Tensor, " d"],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "... d"], Float[Tensor, "... d"]]:
    """(x + delta, its RMS norm in `dtype`): the step from one half of a block to the next. None adds nothing."""
    if kernels.available(x) and x.dtype == gain.dtype != torch.bfloat16 and _go_together(x.dtype, dtype):
        if delta is None or delta.dtype == dtype:
            return kernels.add_norm(x, delta, gain, eps, dtype)
        x = x + delta
        return kernels.add_norm(x, None, gain, eps, dtype)
    x = x if delta is None else x + delta
    return x, rms_norm(x, gain, eps).to(dtype)


def _go_together(wide: torch.dtype, narrow: torch.dtype) -> bool:
    return narrow == wide or (wide, narrow) == (torch.float32, torch.bfloat16)


def matmul_dtype(x: Float[Tensor, "..."]) -> torch.dtype:
    """The type in which a linear layer will take x: autocast's, where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def swiglu(gate_up: Float[Tensor, "... two_f"]) -> Float[Tensor, "... f"]:
    """SiLU(gate) ⊙ up, where gate and up are the first and second half of the last axis."""
    if kernels.available(gate_up):
        return kernels.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def rotate_half_split(
    x: Float[Tensor, "b t h d"], cos: Float[Tensor, "*rows t m"], sin: Float[Tensor, "*rows t m"]
) -> Float[Tensor, "b t h d"]:
    """RoPE in Llama's layout on the first 2m dimensions of each head: pair i is (i, i + m); the rest pass.

    cos and sin are those of the positions: of each row (rows = b) or the same for all. Half types are rotated
    in float32 and cast after.
    """
    half = cos.shape[-1]
    wide = x.to(cos.dtype)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x.dtype)
