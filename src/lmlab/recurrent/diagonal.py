"""RNN, GRU and LSTM whose hidden matrices are diagonal: one vector of weights for each gate."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lmlab.recurrent.checks import check_input, check_state
from lmlab.recurrent.fused import fused
from lmlab.recurrent.precision import autocast_is_on, in_own_precision
from lmlab.recurrent.rows import Rows
from lmlab.recurrent.sequence import read_batch, run_layers
from lmlab.recurrent.unfused import Weights, unfused

_GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}


class _Diagonal(nn.Module):
    mode: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must lie in [0, 1], got {dropout}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = (
            bias,
            batch_first,
            dropout,
            bidirectional,
        )
        self.last_solution: dict[str, Any] | None = None
        gates = _GATES[self.mode]
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * self._directions
            for suffix in ("", "_reverse")[: self._directions]:
                end = f"_l{layer}{suffix}"
                self.register_parameter(
                    f"weight_ih{end}", nn.Parameter(torch.empty(gates * hidden_size, width))
                )
                self.register_parameter(f"weight_hh{end}", nn.Parameter(torch.empty(gates * hidden_size)))
                for name in ("bias_ih", "bias_hh") if bias else ():
                    self.register_parameter(f"{name}{end}", nn.Parameter(torch.empty(gates * hidden_size)))
        self.reset_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def reset_parameters(self) -> None:
        """Uniform in ±1/sqrt(hidden_size), as torch.nn's."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"

    def forward(
        self,
        input: Float[Tensor, "..."] | PackedSequence,
        hx: Any = None,
        *,
        reset: Bool[Tensor, "..."] | None = None,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> tuple[Tensor | PackedSequence, Any]:
        """(output, hx) as torch.nn's module of the name gives them; reset and lengths as `lmlab.recurrent.GRU`.

        The layer is one fused loop with the channels side by side in vectors; where a call has few channels,
        it is solved by Newton's method with the steps side by side. `last_solution` says what ran.
        Under autocast it runs in the type of its parameters.
        """
        packed = isinstance(input, PackedSequence)
        data: Tensor = input.data if isinstance(input, PackedSequence) else input
        if autocast_is_on(data):
            found: tuple[Any, Any] = in_own_precision(self, input, hx, reset=reset, lengths=lengths)
            return found
        check_input(self, data, packed)
        single = not packed and data.dim() == 2
        batch = read_batch(input, reset, lengths, self.batch_first)
        number = self.num_layers * self._directions
        names = ("hx[0]", "hx[1]") if self.mode == "LSTM" else ("hx",)
        state = check_state(
            hx, names, (number, batch.forward.batch, self.hidden_size), data, single, batch.packed
        )
        if data.numel() == 0:
            y = data.new_zeros(batch.x.shape[0], self.hidden_size * self._directions)
            y, after = y + _tie(self, data), state
        else:
            y, after = run_layers(
                self._layer,
                batch,
                state,
                self._weights(),
                directions=self._directions,
                dropout=self.dropout if self.training else 0.0,
            )
        if single:
            after = tuple(part[:, 0] for part in after)
        elif batch.packed is not None and batch.packed.unsorted_indices is not None:
            after = tuple(part.index_select(1, batch.packed.unsorted_indices) for part in after)
        return batch.give_back(y), after if self.mode == "LSTM" else after[0]

    def _layer(
        self, rows: Rows, x: Tensor, state: tuple[Tensor, ...], weights: Weights
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            self.last_solution = {"iterations": 1, "residual": 0.0, "converged": True, "method": "sequential"}
            return unfused(self.mode, True, rows, x, state, weights)
        self.last_solution = {}
        return fused(self.mode, True, rows, x, state, weights, self.last_solution)

    def _weights(self) -> list[Weights]:
        found: list[Weights] = []
        for layer in range(self.num_layers):
            for suffix in ("", "_reverse")[: self._directions]:
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                w: list[Any] = [getattr(self, f"{name}_l{layer}{suffix}", None) for name in names]
                found.append((w[0], w[1], w[2], w[3]))
        return found


def _tie(module: nn.Module, data: Tensor) -> Tensor:
    """Zero, with every parameter and the input in its graph: their gradients are zeros, not None."""
    return data.sum() * 0 + sum(parameter.sum() * 0 for parameter in module.parameters())


class DiagonalRNN(_Diagonal):
    """h' = φ(W_ih x + b_ih + w_hh⊙h + b_hh), φ = tanh or relu: torch.nn.RNN with a diagonal W_hh.

    Parameters are named as torch's; `weight_hh_l0` is the diagonal, [n].
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        nonlinearity: str = "tanh",
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        self.mode = "RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU"
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        self.nonlinearity = nonlinearity


class DiagonalGRU(_Diagonal):
    """torch.nn.GRU whose three hidden matrices are diagonal; `weight_hh_l0` holds the diagonals, [3n]."""

    mode = "GRU"


class DiagonalLSTM(_Diagonal):
    """torch.nn.LSTM whose four hidden matrices are diagonal; `weight_hh_l0` holds the diagonals, [4n]."""

    mode = "LSTM"
