"""float32 products with a weight on the CPU, and the linear layer made of them.

torch multiplies float32 on a CPU by MKL, which on AMD's processors leaves AVX-512 aside. oneDNN, which torch
carries too and its own compiler calls by the operator below, does not: less than half the time there, measured
(on Intel's nothing was). Its results differ from MKL's as two orders of summation do.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_PLAIN = (Tensor, nn.Parameter)
# Multiplications below which the start of an operator of oneDNN costs more than it gains.
_WORTH = 2**21


class Linear(nn.Linear):
    """torch's linear layer, multiplied by oneDNN where that is faster; differentiable once there."""

    def forward(self, input: Float[Tensor, "... d"]) -> Float[Tensor, "... n"]:
        return linear(input, self.weight, self.bias)


def linear(
    x: Float[Tensor, "... d"], weight: Float[Tensor, "n d"], bias: Float[Tensor, " n"] | None = None
) -> Float[Tensor, "... n"]:
    """x · weightᵀ + bias, as F.linear: under autocast, in other types, on other devices and traced it is that,
    and for tensors of another class (sharded, quantised, fake)."""
    plain = type(x) in _PLAIN and type(weight) in _PLAIN and x.dtype == weight.dtype
    traced = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    if not plain or traced or not by_onednn(x, weight):
        return nn.functional.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


def by_onednn(a: Float[Tensor, "... k"], b: Float[Tensor, "n k"]) -> bool:
    """Whether oneDNN multiplies a by bᵀ: float32 on a CPU with AVX-512, and large enough."""
    wide = a.dtype == torch.float32 and a.device.type == "cpu"
    return wide and a.numel() * len(b) >= _WORTH and _is_there()


def onednn(a: Float[Tensor, "m k"], b: Float[Tensor, "n k"], bias: Tensor | None = None) -> Tensor:
    """a · bᵀ + bias as a new tensor. Only where `by_onednn` holds.

    Of a and b each may be a transpose; b's rows must lie without gaps, else oneDNN is hundreds of times slower.
    """
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


@functools.cache
def _is_there() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = onednn(_rows(x), weight.detach().contiguous(), None if bias is None else bias.detach())
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        d_rows = _rows(d_y)
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            onednn(d_rows, weight.detach().contiguous().T).view(x.shape) if to_x else None,
            _outer(d_rows, _rows(x)) if to_weight else None,
            d_rows.sum(0) if to_bias else None,
        )


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).contiguous()


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ · b. oneDNN copies its first factor: that is to be the narrow one."""
    if a.shape[1] <= b.shape[1]:
        return onednn(a.T, b.T)
    return onednn(b.T, a.T).T.contiguous()
