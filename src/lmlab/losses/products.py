"""The three matrix products of a chunk of tokens: logits, the gradient of hidden, the gradient of the head."""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab._linear import by_onednn, onednn

# Words at once: what an operator without `out=` returns stays small and in the cache.
_BLOCK = 1024


def apart(rows: int, v: int, like: Tensor) -> Tensor:
    """A new tensor [rows v] whose rows begin at multiples of a cache line and not at ones of a page.

    Read by columns, as the gradient of the head does, rows at powers of two fall on one another in the cache.
    """
    stride = -(-v // 16) * 16
    stride += 16 if stride % 128 == 0 else 0
    return like.new_empty(rows, stride)[:, :v]


def multiply(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """out [r v] = a [r d] · b [v d]ᵀ + bias [v]."""
    if not by_onednn(a, b):
        if bias is None:
            torch.mm(a, b.T, out=out)
        else:
            torch.addmm(bias, a, b.T, out=out)
        return
    for words in _blocks(len(b)):
        out[:, words] = onednn(a, b[words], None if bias is None else bias[words])


def multiply_back(z: Tensor, weight: Tensor) -> Tensor:
    """z [r v] · weight [v d]."""
    if not by_onednn(z, weight.T):
        return torch.mm(z, weight)
    total = z.new_zeros(len(z), weight.shape[1])
    for words in _blocks(len(weight)):
        total += onednn(z[:, words], weight[words].T)
    return total


def add_outer(total: Tensor, z: Tensor, h: Tensor, *, first: bool) -> None:
    """total [v d] += z [r v]ᵀ · h [r d], or = where it's the first; half types are added in the total's type."""
    if z.dtype == total.dtype and not by_onednn(z.T, h.T):
        total.addmm_(z.T, h, beta=0 if first else 1)
        return
    for words in _blocks(len(total)):
        product = onednn(z[:, words].T, h.T) if z.dtype == total.dtype else torch.mm(z[:, words].T, h)
        if first:
            total[words] = product
        else:
            total[words] += product


def _blocks(v: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, v, _BLOCK)]
