"""Non-linear RNNs computed in parallel over time, and torch's own RNNs in fused loops.

GRU.from_torch(model.gru)                 the same numbers and checkpoint, much faster at batch 1
solve(cell, inputs, method="newton")      any cell (h, u) -> h', all steps at once, tested and differentiable
lyapunov(cell, inputs).verdict            whether that is worth trying
linear_scan(a, b)                         h_t = a_t h_{t-1} + b_t, differentiable
"""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.recurrent.cells import Cell as Cell
    from lmlab.recurrent.cells import as_cell as as_cell
    from lmlab.recurrent.diagnose import Lyapunov as Lyapunov
    from lmlab.recurrent.diagnose import convergence as convergence
    from lmlab.recurrent.diagnose import lyapunov as lyapunov
    from lmlab.recurrent.diagonal import DiagonalGRU as DiagonalGRU
    from lmlab.recurrent.diagonal import DiagonalLSTM as DiagonalLSTM
    from lmlab.recurrent.diagonal import DiagonalRNN as DiagonalRNN
    from lmlab.recurrent.linear import LRU as LRU
    from lmlab.recurrent.linear import MinGRU as MinGRU
    from lmlab.recurrent.modules import GRU as GRU
    from lmlab.recurrent.modules import LSTM as LSTM
    from lmlab.recurrent.modules import RNN as RNN
    from lmlab.recurrent.options import RecurrentOptions as RecurrentOptions
    from lmlab.recurrent.scan import linear_scan as linear_scan
    from lmlab.recurrent.solver import ConvergenceError as ConvergenceError
    from lmlab.recurrent.solver import ConvergenceWarning as ConvergenceWarning
    from lmlab.recurrent.solver import Solution as Solution
    from lmlab.recurrent.solver import solve as solve

_NAMES = {
    "cells": ["Cell", "as_cell"],
    "diagnose": ["Lyapunov", "convergence", "lyapunov"],
    "diagonal": ["DiagonalGRU", "DiagonalLSTM", "DiagonalRNN"],
    "linear": ["LRU", "MinGRU"],
    "modules": ["GRU", "LSTM", "RNN"],
    "options": ["RecurrentOptions"],
    "scan": ["linear_scan"],
    "solver": ["ConvergenceError", "ConvergenceWarning", "Solution", "solve"],
}

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "RNN",
    "Cell",
    "ConvergenceError",
    "ConvergenceWarning",
    "DiagonalGRU",
    "DiagonalLSTM",
    "DiagonalRNN",
    "Lyapunov",
    "MinGRU",
    "RecurrentOptions",
    "Solution",
    "as_cell",
    "convergence",
    "linear_scan",
    "lyapunov",
    "solve",
]

__getattr__, __dir__ = door(__name__, _NAMES)
