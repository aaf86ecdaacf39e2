"""The decoder's element-wise arithmetic as pure functions on tensors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Float[Tensor, "... d"], gain: Float[Tensor, " d"], eps: float) -> Float[Tensor, "... d"]:
    """gain ⊙ x / sqrt(mean(x²) + eps) over the last axis, in float32 or wider; the result has x's dtype."""
    wide = x.to(accumulation_dtype(x.dtype))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * gain).to(x.dtype)


def swiglu(gate_up: Float[Tensor, "... two_f"]) -> Float[Tensor, "... f"]:
    """SiLU(gate) ⊙ up, where gate and up are the first and second half of the last axis."""
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
