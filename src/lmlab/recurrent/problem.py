"""What a solver is asked for, checked: a cell, its inputs, where it starts, and the loop step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.recurrent.cells import FunctionCell, TorchCell, as_cell
from lmlab.recurrent.checks import first_bad


@dataclass(frozen=True)
class Problem:
    """u [b t …]: prepared inputs. h0 [b n]. reset: bool [b t] or None."""

    cell: Any
    u: Tensor
    h0: Tensor
    reset: Tensor | None


def read_problem(cell: Any, inputs: Tensor, h0: Tensor | None, *, reset: Tensor | None = None) -> Problem:
    """Checks the arguments of `solve`; h0 None is zero, and a plain function's state is then as wide as its input."""
    if inputs.ndim != 3:
        raise ValueError(f"inputs must be [b t m], got {tuple(inputs.shape)}")
    if inputs.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"inputs must be float32 or float64, got {inputs.dtype}")
    bad = first_bad(inputs.detach())
    if bad is not None:
        raise ValueError(f"inputs hold NaN or infinity, first in sequence {bad[0]} at step {bad[1]}")
    b, t, m = inputs.shape
    known = as_cell(cell, m if h0 is None else h0.shape[-1])
    n = known.state_size
    if reset is not None and reset.dtype != torch.bool:
        raise TypeError(f"reset must be bool, True where a new sequence starts, got {reset.dtype}")
    if reset is not None and tuple(reset.shape) != (b, t):
        raise ValueError(f"reset must be [b t] = {(b, t)}, got {tuple(reset.shape)}")
    prepare = getattr(known, "prepare", None)
    u = inputs if prepare is None else prepare(inputs)
    if h0 is None:
        dtype = u.dtype if u.is_complex() else inputs.dtype
        h0 = torch.zeros(b, n, dtype=dtype, device=inputs.device)
    elif tuple(h0.shape) != (b, n):
        raise ValueError(f"h0 must be [b n] = {(b, n)}, got {tuple(h0.shape)}")
    elif not u.is_complex() and (h0.dtype != inputs.dtype or h0.device != inputs.device):
        raise TypeError(
            f"h0 is {h0.dtype} on {h0.device}, inputs {inputs.dtype} on {inputs.device}: give both one type and device"
        )
    if b and t:
        _try_step(known, h0.detach(), u[:, 0].detach())
    return Problem(known, u, h0, reset)


def _try_step(cell: Any, h: Tensor, u: Tensor) -> None:
    """Two calls on the first step: the shape must be right, and the same twice."""
    with torch.no_grad():
        try:
            first, second = cell.step(h, u), cell.step(h, u)
        except RuntimeError as error:
            if isinstance(cell, FunctionCell):
                raise ValueError(
                    f"the cell does not take a state of {tuple(h.shape)} with inputs of {tuple(u.shape)} "
                    f"({str(error).splitlines()[0]}): without h0 the state is as wide as the inputs; give h0"
                ) from error
            raise
    if not isinstance(first, Tensor) or first.shape != h.shape:
        given = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(f"the cell must return the next state, {tuple(h.shape)} for h; it returned {given}")
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise ValueError(
            "the cell must be pure: two calls on the first step gave different states (dropout? noise?)"
        )


def sequential(cell: Any, u: Tensor, h0: Tensor, reset: Tensor | None) -> Tensor:
    """All states [b t n] step by step, outside the graph; by the compiled loop where the cell has one."""
    if isinstance(cell, TorchCell) and cell.runs(u):
        return cell.run(h0, u, reset, {})
    b, t = u.shape[:2]
    states = h0.new_empty(b, t, h0.shape[1])
    h = h0
    for k in range(t):
        if reset is not None:
            h = torch.where(reset[:, k, None], torch.zeros_like(h), h)
        h = cell.step(h, u[:, k])
        states[:, k] = h
    return states
