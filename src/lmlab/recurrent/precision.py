"""Autocast has one rule here: a recurrence runs in the type of its parameters, as torch's norms and sums do.

Half precision would round every state, and these errors add up along time. Only torch.nn's RNN, GRU and LSTM have a
rule of their own, and a module of this room that stands in for one follows it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

HALF = (torch.float16, torch.bfloat16)


def autocast_is_on(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def off(kind: str) -> torch.autocast:
    """Inside, operations on devices of this kind take their arguments as they are."""
    return torch.autocast(kind, enabled=False)


def in_own_precision(module: nn.Module, input: Any, hx: Any, **options: Any) -> Any:
    """module.forward(input, hx) without autocast, both in the type of the module's parameters."""
    dtype = next(module.parameters()).dtype

    def as_parameters(x: Any) -> Any:
        if isinstance(x, (tuple, list)) and not isinstance(x, PackedSequence):
            return tuple(as_parameters(part) for part in x)
        data = x.data if isinstance(x, PackedSequence) else x
        plain = isinstance(data, Tensor) and data.dtype in (*HALF, torch.float32)
        return x.to(dtype) if plain else x  # float64, complex states and bad input: as without autocast

    data = input.data if isinstance(input, PackedSequence) else input
    with off(data.device.type):
        return module.forward(as_parameters(input), as_parameters(hx), **options)


def at_least_float32(x: Any) -> Any:
    """A tensor of half precision widened; any other, and None, as it is."""
    return x.float() if x is not None and x.dtype in HALF else x


def in_common_type(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Real tensors in their widest type, to which autocast brings the arguments of a sum."""
    real = [x.dtype for x in tensors if x is not None and x.is_floating_point()]
    if not real:
        return tensors
    widest = real[0]
    for dtype in real[1:]:
        widest = torch.promote_types(widest, dtype)
    return tuple(x if x is None or not x.is_floating_point() else x.to(widest) for x in tensors)
