"""The native kernels of the decoder as functions with gradients: one visit to memory each, on the CPU.

`available` says whether a tensor can go through them; `lmlab.model.ops` has the same functions in torch.
Sums are taken in an order that doesn't depend on the number of threads.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 1024
"""Positions up to which `causal_attention` keeps a head in the cache; longer sequences are torch's."""

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def available(x: Tensor) -> bool:
    """Whether x lies where the kernels can work on it (and isn't traced by torch.compile)."""
    return (
        x.device.type == "cpu"
        and x.dtype in _DTYPES
        and not torch.compiler.is_compiling()
        and native() is not None
    )


@functools.cache
def native() -> Any:
    """The compiled kernels; None, after one warning that says why, where they can't be loaded."""
    try:
        from lmlab._native import model
    except ImportError as error:
        warnings.warn(
            f"lmlab.model runs without its native kernels, slower and with the same results: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return model


def add_norm(
    x: Float[Tensor, "... d"],
    delta: Float[Tensor, "... d"] | None,
    gain: Float[Tensor, " d"],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "... d"], Float[Tensor, "... d"]]:
    """(x + delta, its RMS norm in `dtype`). x and gain are float32 or float64; delta has `dtype`, which is
    theirs or, beside float32, bfloat16."""
    if delta is None:
        return x, _Norm.apply(x, gain, eps, dtype)
    both: tuple[Tensor, Tensor] = _AddNorm.apply(x, delta, gain, eps)
    return both


def swiglu(gate_up: Float[Tensor, "... two_f"]) -> Float[Tensor, "... f"]:
    """SiLU(gate) ⊙ up, where gate and up are the first and second half of the last axis."""
    y: Tensor = _SwiGLU.apply(gate_up)
    return y


def causal_attention(
    qkv: Float[Tensor, "b t heads e"],
    cosines: Float[Tensor, "t m"],
    sines: Float[Tensor, "t m"],
    *,
    kv_heads: int,
    scale: float,
) -> Float[Tensor, "b t h e"]:
    """softmax(scale · q·kᵀ)·v over the positions up to each row's own. heads: h query heads, then kv_heads of
    keys and as many of values; the first 2m dimensions of queries and keys are rotated (m = 0: none)."""
    out: Tensor = _CausalAttention.apply(qkv, cosines, sines, kv_heads, scale)
    return out


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, gain = x.detach().contiguous(), gain.detach()
        y, inverse = torch.empty_like(x, dtype=dtype), _row_numbers(x)
        native().norm(x, None, gain, eps, None, y, inverse, torch.get_num_threads())
        ctx.save_for_backward(x, gain, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, gain, inverse = ctx.saved_tensors
        d_x, _, d_gain = _norm_backward(x, gain, inverse, d_y, None, narrow=False)
        return d_x, d_gain, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x, delta, gain = x.detach().contiguous(), delta.detach().contiguous(), gain.detach()
        total, y, inverse = torch.empty_like(x), torch.empty_like(delta), _row_numbers(x)
        native().norm(x, delta, gain, eps, total, y, inverse, torch.get_num_threads())
        ctx.save_for_backward(total, gain, inverse)
        ctx.set_materialize_grads(False)
        ctx.narrow = delta.dtype != x.dtype
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor | None, d_y: Tensor | None) -> tuple[Any, ...]:
        total, gain, inverse = ctx.saved_tensors
        if d_y is None:
            d_delta = d_total.to(torch.bfloat16) if ctx.narrow and d_total is not None else d_total
            return d_total, d_delta, None, None
        d_x, d_delta, d_gain = _norm_backward(total, gain, inverse, d_y, d_total, narrow=ctx.narrow)
        return d_x, d_delta, d_gain, None


def _row_numbers(x: Tensor) -> Tensor:
    return x.new_empty(x.numel() // max(1, x.shape[-1]))


def _norm_backward(
    x: Tensor, gain: Tensor, inverse: Tensor, d_y: Tensor, d_sum: Tensor | None, *, narrow: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_x, the same in d_y's type, d_gain)."""
    module = native()
    pieces = -(-inverse.numel() // module.piece)
    d_x, d_gain = torch.empty_like(x), x.new_empty(pieces, x.shape[-1])
    d_delta = torch.empty_like(d_y, memory_format=torch.contiguous_format) if narrow else None
    d_sum = None if d_sum is None else d_sum.contiguous()
    threads = torch.get_num_threads()
    module.norm_backward(x, gain, inverse, d_y.contiguous(), d_sum, d_x, d_delta, d_gain, threads)
    return d_x, d_x if d_delta is None else d_delta, d_gain.sum(0)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.detach().contiguous()
        width = gate_up.shape[-1] // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        native().swiglu(gate_up.view(-1, 2 * width), y.view(-1, width), torch.get_num_threads())
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        width = d_y.shape[-1]
        d_gate_up = torch.empty_like(gate_up)
        d_y = d_y.contiguous().view(-1, width)
        rows = gate_up.view(-1, 2 * width), d_y, d_gate_up.view(-1, 2 * width)
        native().swiglu_backward(*rows, torch.get_num_threads())
        return d_gate_up


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cosines: Tensor, sines: Tensor, kv_heads: int, scale: float) -> Tensor:
        qkv = qkv.detach().contiguous()
        b, t, heads, e = qkv.shape
        h = heads - 2 * kv_heads
        out = qkv.new_empty(b, t, h, e)
        lse = cosines.new_empty(b, h, t)
        threads = torch.get_num_threads()
        native().attend(qkv, cosines, sines, kv_heads, scale, out, lse, threads)
        ctx.save_for_backward(qkv, cosines, sines, out, lse)
        ctx.options = kv_heads, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
        qkv, cosines, sines, out, lse = ctx.saved_tensors
        d_qkv = torch.empty_like(qkv)
        threads = torch.get_num_threads()
        native().attend_backward(
            qkv, cosines, sines, *ctx.options, out, lse, d_out.contiguous(), d_qkv, threads
        )
        return d_qkv, None, None, None, None
