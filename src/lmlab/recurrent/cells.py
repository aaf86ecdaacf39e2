"""What the solvers take: a protocol, torch's cells as such, plain functions, and Jacobians for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lmlab.recurrent.fused import KINDS, run_states
from lmlab.recurrent.linear import _Linear
from lmlab.recurrent.unfused import Weights, step

Structure = Literal["dense", "diagonal", "block"]


@runtime_checkable
class Cell(Protocol):
    """h_t = step(h_{t-1}, u_t).

    step(h [… n], u [… m]) -> [… n] is pure and takes any leading shape. structure: of ∂step/∂h; a "block" cell
    has n/k channels of k coordinates, and coordinate i of channel c stands at i·(n/k) + c, as in [h, c] of an LSTM.

    Optional: `prepare(inputs) -> u`, once for all t; `linearize(h, u) -> (h', J)` with J [… n] (diagonal),
    [… n n] (dense) or [… n/k k k] (block); `linear = True` where J doesn't depend on h.
    """

    @property
    def state_size(self) -> int:
        """n"""

    @property
    def structure(self) -> Structure:
        """Of the Jacobian."""

    def step(self, h: Any, u: Any) -> Any:
        """The next state."""


@dataclass(frozen=True)
class FunctionCell:
    """A plain function (h, u) -> h'. Its gradients reach the tensors that it closes over."""

    function: Callable[[Tensor, Tensor], Tensor]
    state_size: int
    structure: Structure = "dense"

    def step(self, h: Tensor, u: Tensor) -> Tensor:
        return self.function(h, u)


@dataclass(frozen=True)
class TorchCell:
    """One direction of one layer of RNN, GRU or LSTM, dense or diagonal, over projections of the input."""

    kind: str
    weights: Weights
    diagonal: bool = False

    @property
    def hidden(self) -> int:
        w_hh = self.weights[1]
        return w_hh.shape[0] // (1 if self.kind.startswith("RNN") else 3 if self.kind == "GRU" else 4)

    @property
    def state_size(self) -> int:
        return self.hidden * (2 if self.kind == "LSTM" else 1)

    @property
    def structure(self) -> Structure:
        if not self.diagonal:
            return "dense"
        return "block" if self.kind == "LSTM" else "diagonal"

    def prepare(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weights[0], self.weights[2])

    def step(self, h: Tensor, u: Tensor) -> Tensor:
        state = h.chunk(2, -1) if self.kind == "LSTM" else (h,)
        after = step(self.kind, state, u, self.weights[1], self.weights[3], self.diagonal)
        return after[0] if len(after) == 1 else torch.cat(after, -1)

    def runs(self, u: Tensor) -> bool:
        """Whether the compiled loop takes these projections."""
        return u.device.type == "cpu" and u.dtype in (torch.float32, torch.float64) and self.kind in KINDS

    def run(self, h0: Tensor, u: Tensor, reset: Tensor | None, report: dict[str, Any]) -> Tensor:
        """All states [b t n] by the compiled loop; outside the graph. report: as in `fused`."""
        return run_states(self.kind, self.diagonal, h0, u, reset, self.weights[1], self.weights[3], report)

    def step_each(self, h: Tensor, u: Tensor) -> Tensor:
        """`step` of many states [b t n] by the compiled loop, as that many sequences of one step."""
        b, t, n = h.shape
        return self.run(h.reshape(b * t, n), u.reshape(b * t, 1, -1), None, {}).view(b, t, n)

    def linearize(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "LSTM":
            return self._linearize_lstm(h, u)
        w_hh = self.weights[1]
        n = h.shape[-1]
        if self.kind.startswith("RNN"):
            new = self.step(h, u)
            slope = 1 - new * new if self.kind == "RNN_TANH" else (new > 0).to(new.dtype)
            return new, self._rows(slope, w_hh)
        g = self._hidden_sums(h)
        r, z = torch.sigmoid(u[..., :n] + g[..., :n]), torch.sigmoid(u[..., n : 2 * n] + g[..., n : 2 * n])
        q = g[..., 2 * n :]
        m = torch.tanh(u[..., 2 * n :] + r * q)
        w_r, w_z, w_n = w_hh.split(n)
        slope = (1 - z) * (1 - m * m)
        j = self._rows(slope * r, w_n)
        j = j + self._rows(slope * q * r * (1 - r), w_r) + self._rows((h - m) * z * (1 - z), w_z)
        j = j + (z if self.diagonal else torch.diag_embed(z))
        return m + z * (h - m), j

    def _linearize_lstm(self, s: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h, c = s.chunk(2, -1)
        i, f, g, o = (u + self._hidden_sums(h)).chunk(4, -1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        new = f * c + i * g
        t = torch.tanh(new)
        w_i, w_f, w_g, w_o = self.weights[1].split(self.hidden)
        c_h = (
            self._rows(g * i * (1 - i), w_i)
            + self._rows(c * f * (1 - f), w_f)
            + self._rows(i * (1 - g * g), w_g)
        )
        through = o * (1 - t * t)
        h_h = self._rows(t * o * (1 - o), w_o) + (
            through * c_h if self.diagonal else through[..., None] * c_h
        )
        if self.diagonal:
            rows = torch.stack([h_h, through * f, c_h, f], -1)
            return torch.cat([o * t, new], -1), rows.view(*rows.shape[:-1], 2, 2)
        top = torch.cat([h_h, torch.diag_embed(through * f)], -1)
        return torch.cat([o * t, new], -1), torch.cat([top, torch.cat([c_h, torch.diag_embed(f)], -1)], -2)

    def _hidden_sums(self, h: Tensor) -> Tensor:
        w_hh, b_hh = self.weights[1], self.weights[3]
        if not self.diagonal:
            return nn.functional.linear(h, w_hh, b_hh)
        sums = w_hh * h.repeat(*(1,) * (h.ndim - 1), w_hh.shape[0] // h.shape[-1])
        return sums if b_hh is None else sums + b_hh

    def _rows(self, factor: Tensor, w: Tensor) -> Tensor:
        """diag(factor) W."""
        return factor * w if self.diagonal else factor[..., None] * w


@dataclass(frozen=True)
class LinearCell:
    """MinGRU and LRU: h' = a h + b with a and b from the input alone, side by side in u."""

    module: _Linear
    structure: Structure = "diagonal"
    linear: bool = True

    @property
    def state_size(self) -> int:
        return self.module.state_size

    def prepare(self, inputs: Tensor) -> Tensor:
        a, b = self.module.coefficients(inputs)
        return torch.cat([a.expand_as(b), b], -1)

    def step(self, h: Tensor, u: Tensor) -> Tensor:
        a, b = u.chunk(2, -1)
        return a * h + b

    def linearize(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        a, b = u.chunk(2, -1)
        return a * h + b, a


def as_cell(x: Any, state_size: int | None = None) -> Cell:
    """The Cell that `x` is.

    x: a torch.nn.RNNCell, GRUCell or LSTMCell; a module with one layer and one direction of torch.nn's or this
    room's RNN, GRU, LSTM, Diagonal…, MinGRU, LRU; a Cell; or a plain function (h, u) -> h', which needs
    `state_size`. Raises TypeError for anything else.
    """
    if isinstance(x, (nn.RNNCell, nn.GRUCell, nn.LSTMCell)):
        kind = {"RNNCell": "RNN", "GRUCell": "GRU", "LSTMCell": "LSTM"}[type(x).__name__]
        kind = f"RNN_{x.nonlinearity.upper()}" if isinstance(x, nn.RNNCell) else kind
        b_ih, b_hh = (x.bias_ih, x.bias_hh) if x.bias else (None, None)
        return TorchCell(kind, (x.weight_ih, x.weight_hh, b_ih, b_hh))
    if isinstance(x, _Linear):
        return LinearCell(x)
    if isinstance(x, nn.Module) and hasattr(x, "weight_hh_l0") and hasattr(x, "mode"):
        return _layer_cell(x)
    if isinstance(x, Cell):
        if x.structure not in ("dense", "diagonal", "block"):
            raise ValueError(f"structure must be 'dense', 'diagonal' or 'block', got {x.structure!r}")
        return x
    if callable(x) and not isinstance(x, (nn.Module, type)):
        if state_size is None:
            raise ValueError("a plain function needs a state size: give h0, or as_cell(f, state_size=n)")
        return FunctionCell(x, state_size)
    raise TypeError(
        f"cell must be a torch.nn RNN, GRU, LSTM or a cell of these, a Cell (state_size, structure, step), or a "
        f"function (h, u) -> h'; got {type(x).__name__}"
    )


def _layer_cell(module: Any) -> TorchCell:
    if module.num_layers != 1 or module.bidirectional or getattr(module, "proj_size", 0):
        raise ValueError(
            "solve takes one layer in one direction without proj_size; got "
            f"num_layers={module.num_layers}, bidirectional={module.bidirectional}"
        )
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w: list[Any] = [getattr(module, name, None) for name in names]
    return TorchCell(module.mode, (w[0], w[1], w[2], w[3]), diagonal=w[1].ndim == 1)


class NotTraceable(TypeError):
    """torch.func can't differentiate the cell."""


def linearize(cell: Any, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(step(h, u), its Jacobian) at h [b t n], in the cell's structure; the cell's own where it has one."""
    own = getattr(cell, "linearize", None)
    if own is not None:
        new, j = own(h, u)
        return new, j
    n = h.shape[-1]
    try:
        if cell.structure == "dense":
            flat = torch.func.vmap(torch.func.jacrev(cell.step))(h.reshape(-1, n), u.reshape(-1, u.shape[-1]))
            return cell.step(h, u), flat.view(*h.shape, n)
        return _by_rows(cell, h, u)
    except (RuntimeError, ValueError, TypeError) as error:
        raise NotTraceable(
            "the method needs the Jacobian of the cell, and torch.func can't trace its step "
            f"({str(error).splitlines()[0]}): "
            'give the cell a linearize(h, u) -> (h\', J), or use method="shooting"'
        ) from error


def _by_rows(cell: Any, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """A diagonal or block Jacobian, all channels at once: one product with the transpose for each coordinate."""
    k = block_size(cell)
    new, pull, *_ = torch.func.vjp(lambda state: cell.step(state, u), h)
    rows = []
    for part in range(k):
        cotangent = torch.zeros_like(new).unflatten(-1, (k, -1))
        cotangent[..., part, :] = 1
        (row,) = pull(cotangent.flatten(-2))
        rows.append(row.unflatten(-1, (k, -1)))  # [… j, channel]
    if k == 1:
        return new, rows[0].flatten(-2)
    return new, torch.stack(rows, -2).movedim(-1, -3).movedim(-1, -2).contiguous()  # [… channel, i, j]


def block_size(cell: Any) -> int:
    """Coordinates a channel: 1 for a diagonal cell; of a block cell its `block`, 2 unless it says otherwise."""
    return 1 if cell.structure == "diagonal" else int(getattr(cell, "block", 2))
