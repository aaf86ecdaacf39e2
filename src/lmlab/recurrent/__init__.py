"""Non-linear RNNs computed in parallel over time, and torch's own RNNs in fused loops.

GRU.from_torch(model.gru)                 the same numbers and checkpoint, much faster at batch 1
linear_scan(a, b)                         h_t = a_t h_{t-1} + b_t, differentiable
"""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
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

_NAMES = {
    "diagonal": ["DiagonalGRU", "DiagonalLSTM", "DiagonalRNN"],
    "linear": ["LRU", "MinGRU"],
    "modules": ["GRU", "LSTM", "RNN"],
    "options": ["RecurrentOptions"],
    "scan": ["linear_scan"],
}

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "RNN",
    "DiagonalGRU",
    "DiagonalLSTM",
    "DiagonalRNN",
    "MinGRU",
    "RecurrentOptions",
    "linear_scan",
]

__getattr__, __dir__ = door(__name__, _NAMES)
