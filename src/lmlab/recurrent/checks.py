"""What the modules accept: every refusal names the argument, what was given, and what fits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def check_input(module: nn.Module, data: Tensor, packed: bool) -> None:
    """data: input, or the rows of a PackedSequence."""
    size: Any = module.input_size
    if not packed and data.dim() not in (2, 3):
        raise ValueError(
            f"input must be [b t m], [t b m] or, without a batch, [t m]; got {tuple(data.shape)}"
        )
    if data.shape[-1] != size:
        raise ValueError(f"input must be {size} wide, the input_size; got {tuple(data.shape)}")
    for name, parameter in module.named_parameters():
        check_same("input", data, name, parameter.real if parameter.is_complex() else parameter)


def check_same(name: str, given: Tensor, other: str, reference: Tensor) -> None:
    if given.dtype != reference.dtype:
        raise TypeError(f"{name} is {given.dtype}, {other} is {reference.dtype}: give both one type")
    if given.device != reference.device:
        raise TypeError(f"{name} is on {given.device}, {other} on {reference.device}: give both one device")


def check_state(
    hx: Any,
    names: tuple[str, ...],
    shape: tuple[int, int, int],
    data: Tensor,
    single: bool,
    packed: PackedSequence | None,
) -> tuple[Tensor, ...]:
    """The given state as parts [layers·directions b n] in the order of the batch; zeros for None."""
    if hx is None:
        return tuple(data.new_zeros(shape) for _ in names)
    parts = tuple(hx) if len(names) == 2 and isinstance(hx, (tuple, list)) else (hx,)
    if len(parts) != len(names):
        raise ValueError("hx must be the pair (h, c)")
    wanted = (shape[0], shape[2]) if single else shape
    for name, part in zip(names, parts, strict=True):
        if not isinstance(part, Tensor) or tuple(part.shape) != wanted:
            given = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"{name} must be {wanted}, got {given}")
        check_same(name, part.real if part.is_complex() else part, "input", data)
    if single:
        return tuple(part[:, None] for part in parts)
    if packed is not None and packed.sorted_indices is not None:
        return tuple(part.index_select(1, packed.sorted_indices) for part in parts)
    return parts


def first_bad(x: Tensor) -> tuple[int, int] | None:
    """(b, t) of the first step of x [b t m] that holds NaN or infinity."""
    if bool(torch.isfinite(x.sum())):
        return None  # one pass without a mask; a sum that is not finite may still be of finite numbers
    bad = ~torch.isfinite(x).all(-1)
    found = bad.nonzero()
    return (int(found[0, 0]), int(found[0, 1])) if found.numel() else None
