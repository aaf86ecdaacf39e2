"""RNN, GRU and LSTM in place of torch.nn's: the same parameters and numbers, in fused loops on a CPU."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lmlab.recurrent.fused import fused
from lmlab.recurrent.precision import autocast_is_on, in_own_precision
from lmlab.recurrent.rows import Rows
from lmlab.recurrent.sequence import Batch, read_batch, run_layers
from lmlab.recurrent.unfused import Weights, unfused

Module = TypeVar("Module")


class _Fused:
    """Mixed in before torch's class: its forward takes the compiled loop where that may run."""

    def forward(
        self: Any,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        reset: Bool[Tensor, "..."] | None = None,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> tuple[Tensor | PackedSequence, Any]:
        """As torch.nn's, and more: sequences that start anew inside a row, and rows that end early.

        reset: bool, as the first two axes of input; True where a new sequence starts: the state before that
        step is zero (in the backward direction, the state before the step to its left). hx enters the segment
        that a direction runs first, and not at all where reset is True at its very first step.
        lengths: steps of each row; outputs past them are zero, the final state is the one at the end.
        Under autocast torch's own forward runs; with reset or lengths, the loop in the type of the parameters.
        Raises what torch.nn raises; ValueError and TypeError for reset and lengths that don't fit.
        """
        extended = reset is not None or lengths is not None
        data = input.data if isinstance(input, PackedSequence) else input
        if extended and autocast_is_on(data):
            found: tuple[Any, Any] = in_own_precision(self, input, hx, reset=reset, lengths=lengths)
            return found
        weights = self._layer_weights()
        possible = _ordinary(self, data, hx, weights)
        mapped = (
            torch._C._functorch.peek_interpreter_stack() is not None
        )  # torch has no rules for its own there
        if not extended and not mapped and (not possible or _traced()):
            return self._torch_forward(input, hx)  # type: ignore[no-any-return]
        self._check(input, hx, extended)
        batch = read_batch(input, reset, lengths, self.batch_first)
        layer = _fast if possible and not mapped and not _traced() else _plain
        single = not isinstance(input, PackedSequence) and input.dim() == 2
        state = self._initial_state(batch, hx, single)
        y, after = run_layers(
            layer(self.mode),
            batch,
            state,
            weights,
            directions=2 if self.bidirectional else 1,
            dropout=self.dropout if self.training else 0.0,
        )
        return batch.give_back(y), self._final_state(after, batch, single)

    def _torch_forward(self: Any, input: Tensor | PackedSequence, hx: Any) -> Any:
        # torch reads this list; parametrizations and swapped parameters are only seen under their names
        self._flat_weights = [getattr(self, name) for name in self._flat_weights_names]
        return super().forward(input, hx)  # type: ignore[misc]

    def _check(self: Any, input: Tensor | PackedSequence, hx: Any, extended: bool) -> None:
        """torch's own refusals, and ours for what torch does not know."""
        if isinstance(input, PackedSequence):
            self.check_input(input.data, input.batch_sizes)
            return
        if input.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead"
            )
        self.check_input(input if input.dim() == 3 else input[None], None)
        if extended and input.numel() == 0:
            raise ValueError(
                f"input must have steps and sequences under reset and lengths, got {tuple(input.shape)}"
            )
        if extended and self.proj_size:
            raise ValueError("reset and lengths are not for proj_size > 0: cut the sequences before the call")

    def _initial_state(self: Any, batch: Batch, hx: Any, single: bool) -> tuple[Tensor, ...]:
        """(h,) or (h, c), each [layers·directions b n], in the order of the batch."""
        parts = self.mode == "LSTM"
        number = self.num_layers * (2 if self.bidirectional else 1)
        shape = (number, batch.forward.batch, self.hidden_size)
        if hx is None:
            zero = batch.x.new_zeros(shape)
            return (zero, zero) if parts else (zero,)
        state = tuple(hx) if parts else (hx,)
        for name, part in zip(("hx[0]", "hx[1]") if parts else ("hx",), state, strict=True):
            if part.dim() != (2 if single else 3):
                kind = "unbatched 2-D" if single else "batched 3-D"
                raise RuntimeError(
                    f"For {kind} input, {name} should also be {2 if single else 3}-D but got {part.dim()}-D tensor"
                )
            self.check_hidden_size(part[:, None] if single else part, shape)
        if single:
            return tuple(part[:, None] for part in state)
        order = None if batch.packed is None else batch.packed.sorted_indices
        return state if order is None else tuple(part.index_select(1, order) for part in state)

    def _final_state(self: Any, after: tuple[Tensor, ...], batch: Batch, single: bool) -> Any:
        if single:
            after = tuple(part[:, 0] for part in after)
        elif batch.packed is not None and batch.packed.unsorted_indices is not None:
            after = tuple(part.index_select(1, batch.packed.unsorted_indices) for part in after)
        return after if self.mode == "LSTM" else after[0]

    def _layer_weights(self: Any) -> list[Weights]:
        """By name at every call, so that nothing stale is read after a load, a move or a parametrization."""
        found: list[Weights] = []
        for layer in range(self.num_layers):
            for suffix in ("", "_reverse") if self.bidirectional else ("",):
                names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
                w: list[Any] = [getattr(self, f"{name}_l{layer}{suffix}", None) for name in names]
                found.append((w[0], w[1], w[2], w[3]))
        return found

    @classmethod
    def from_torch(cls: type[Module], module: Any) -> Module:
        """A module of this class that shares the parameters of `module`, of torch.nn's class of the same name."""
        own: Any = next(base for base in cls.__mro__ if base.__module__.startswith("torch."))
        if type(module) not in (own, cls):
            raise TypeError(
                f"{cls.__name__}.from_torch takes a torch.nn.{own.__name__}, got {type(module).__name__}"
            )
        made: Any = cls.__new__(cls)
        for name, value in module.__dict__.items():
            made.__dict__[name] = copy.copy(value) if isinstance(value, (dict, list, set)) else value
        return made  # type: ignore[no-any-return]


class RNN(_Fused, nn.RNN):  # type: ignore[misc]
    """torch.nn.RNN (tanh or relu) in fused loops: h' = φ(W_ih x + b_ih + W_hh h + b_hh)."""


class GRU(_Fused, nn.GRU):  # type: ignore[misc]
    """torch.nn.GRU in fused loops.

    r, z = σ(W_ih x + b_ih + W_hh h + b_hh), m = tanh(W_in x + b_in + r⊙(W_hn h + b_hn)), h' = (1−z)⊙m + z⊙h.
    """


class LSTM(_Fused, nn.LSTM):  # type: ignore[misc]
    """torch.nn.LSTM in fused loops: c' = f⊙c + i⊙g, h' = o⊙tanh(c')."""


def _fast(kind: str) -> Any:
    def layer(rows: Rows, x: Tensor, state: tuple[Tensor, ...], weights: Weights) -> Any:
        return fused(kind, False, rows, x, state, weights)

    return layer


def _plain(kind: str) -> Any:
    def layer(rows: Rows, x: Tensor, state: tuple[Tensor, ...], weights: Weights) -> Any:
        return unfused(kind, False, rows, x, state, weights)

    return layer


def _ordinary(module: Any, data: Tensor, hx: Any, weights: list[Weights]) -> bool:
    """Whether everything lies on a CPU in one type that the kernels know, and is what torch.nn would accept."""
    parts = [] if hx is None else list(hx) if isinstance(hx, (tuple, list)) else [hx]
    tensors = [data, *parts, *(w for layer in weights for w in layer if w is not None)]
    return (
        data.dtype in (torch.float32, torch.float64)
        and data.numel() > 0
        and getattr(module, "proj_size", 0) == 0
        and all(type(x) in (Tensor, nn.Parameter) for x in tensors)
        and all(x.dtype == data.dtype and x.device.type == "cpu" for x in tensors)
        and data.layout == torch.strided
    )


def _traced() -> bool:
    """Whether torch watches the operations: autocast, compile, export, trace, forward mode."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )
