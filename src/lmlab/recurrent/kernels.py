"""The compiled loops of a type, and how tensors come to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from lmlab import _native

_OF_TYPE = {
    torch.float32: _native.recurrent.float32,
    torch.float64: _native.recurrent.float64,
    torch.complex64: _native.recurrent.float32,
    torch.complex128: _native.recurrent.float64,
}


def kernels(x: Tensor) -> Any:
    """Those that take numbers of the type of x; a complex tensor is given as pairs of numbers."""
    return _OF_TYPE[x.dtype]


def raw(x: Tensor | None) -> Any:
    """What a kernel reads: a capsule, made in a tenth of the time in which the kernel would ask a tensor for one."""
    return None if x is None else to_dlpack(x)
