"""The three matrix products of a chunk of tokens: logits, the gradient of hidden, the gradient of the head.

torch multiplies float32 on a CPU by MKL, which on AMD's processors leaves AVX-512 aside. oneDNN, which torch
carries too and its own compiler calls by the operator below, does not: half the time there, measured, and about
the same on Intel's. Its results differ from MKL's as two orders of summation do.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

# Words at once: what an operator without `out=` returns stays small and in the cache.
_BLOCK = 1024
# Multiplications below which the start of an operator of oneDNN costs more than it gains.
_WORTH = 2**21


def apart(rows: int, v: int, like: Tensor) -> Tensor:
    """A new tensor [rows v] whose rows begin at multiples of a cache line and not at ones of a page.

    Read by columns, as the gradient of the head does, rows at powers of two fall on one another in the cache.
    """
    stride = -(-v // 16) * 16
    stride += 16 if stride % 128 == 0 else 0
    return like.new_empty(rows, stride)[:, :v]


def multiply(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """out [r v] = a [r d] · b [v d]ᵀ + bias [v]."""
    if not _by_onednn(a, b):
        if bias is None:
            torch.mm(a, b.T, out=out)
        else:
            torch.addmm(bias, a, b.T, out=out)
        return
    for words in _blocks(len(b)):
        out[:, words] = _onednn(a, b[words], None if bias is None else bias[words])


def multiply_back(z: Tensor, weight: Tensor) -> Tensor:
    """z [r v] · weight [v d]."""
    if not _by_onednn(z, weight.T):
        return torch.mm(z, weight)
    total = z.new_zeros(len(z), weight.shape[1])
    for words in _blocks(len(weight)):
        total += _onednn(z[:, words], weight[words].T, None)
    return total


def add_outer(total: Tensor, z: Tensor, h: Tensor, *, first: bool) -> None:
    """total [v d] += z [r v]ᵀ · h [r d], or = where it's the first; half types are added in the total's type."""
    if z.dtype == total.dtype and not _by_onednn(z.T, h.T):
        total.addmm_(z.T, h, beta=0 if first else 1)
        return
    for words in _blocks(len(total)):
        product = _onednn(z[:, words].T, h.T, None) if z.dtype == total.dtype else torch.mm(z[:, words].T, h)
        if first:
            total[words] = product
        else:
            total[words] += product


def _blocks(v: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, v, _BLOCK)]


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN multiplies a [m k] by bᵀ, b [n k]."""
    wide = a.dtype == torch.float32 and a.device.type == "cpu"
    return wide and a.numel() * len(b) >= _WORTH and _onednn_is_there()


@functools.cache
def _onednn_is_there() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Any:
    """a [m k] · b [n k]ᵀ + bias [n] as a new tensor."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
