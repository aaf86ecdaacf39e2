"""What a trained recurrent cell says of solving it for all steps at once: by the gain of its recurrent weights,
and by the length of the text."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

GAINS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # times the trained recurrent weights
SWEEPS = 32
SOLVED = 1e-5  # residual
WIDEST = 256  # state, above which Jacobians of a hundred steps cost too much
SHORTEST, LONGEST = 2**8, 2**17
PATIENCE = 0.1  # seconds; a method that takes longer is not tried on longer texts
REPEATS = 2


@torch.no_grad()
def by_gain(cell: nn.Module, x: Float[Tensor, "1 t m"]) -> list[dict[str, Any]]:
    """Of the cell with its recurrent weights times each gain: the Lyapunov exponent, the sweeps that Newton's
    method takes over all steps (None: not solved), and the relative error of a gradient by the reversed scan
    with the true Jacobian and with its diagonal. Empty for a cell without recurrent weights."""
    from lmlab.recurrent import as_cell, convergence, lyapunov
    from lmlab.recurrent.diagnose import gradient_errors

    if not hasattr(cell, "weight_hh_l0") or as_cell(cell).state_size > WIDEST:
        return []
    found = []
    for gain in GAINS:
        scaled = copy.deepcopy(cell)
        scaled.weight_hh_l0.mul_(gain)  # type: ignore[operator]
        told = lyapunov(scaled, x)
        rows = convergence(scaled, x, methods=("newton",), max_iter=SWEEPS)
        solved = (row["iteration"] for row in rows if row["residual"] <= SOLVED)
        found.append(
            {
                "gain": gain,
                "exponent": float(told.exponent[0]),
                "sweeps": next(solved, None),
                "gradient": gradient_errors(scaled, x),
            }
        )
    return found


@torch.no_grad()
def by_length(cell: nn.Module, x: Float[Tensor, "1 t m"]) -> list[dict[str, Any]]:
    """Seconds of processor time a step of a forward pass over texts of growing length, x again and again, of every
    way to run the cell: itself, torch.nn's module of its kind and width, multiple shooting, Newton's method."""
    found = []
    for method, run in _ways(cell, x):
        steps = SHORTEST
        while steps <= LONGEST:
            text = x.repeat(1, -(-steps // x.shape[1]), 1)[:, :steps]
            seconds = min(_seconds(run, text) for _ in range(REPEATS))
            found.append({"method": method, "length": steps, "seconds": seconds / steps})
            if seconds > PATIENCE:
                break
            steps *= 4 if 4 * steps <= LONGEST else 2
    return found


def _seconds(run: Callable[[Tensor], object], text: Tensor) -> float:
    """Processor time: what else the machine does must not bend the curves."""
    start = time.process_time()
    run(text)
    return time.process_time() - start


def _ways(cell: Any, x: Tensor) -> Iterator[tuple[str, Callable[[Tensor], object]]]:
    from lmlab.recurrent import solve

    yield "this cell", cell
    kind = getattr(cell, "mode", "").partition("_")[0]
    if not kind:
        return  # a linear cell is one scan: there is nothing to solve
    theirs = getattr(nn, kind)(x.shape[2], cell.hidden_size, batch_first=True, dtype=x.dtype)
    yield f"torch.nn.{kind}", theirs
    yield "shooting", lambda text: solve(cell, text, method="shooting")
    yield "newton", lambda text: solve(cell, text, method="newton")
