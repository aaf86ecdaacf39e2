"""Layers whose state moves linearly, so that one scan is exact: MinGRU and LRU."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lmlab.recurrent.checks import check_input, check_state
from lmlab.recurrent.precision import autocast_is_on, in_own_precision
from lmlab.recurrent.scan import linear_scan
from lmlab.recurrent.sequence import check_lengths, check_reset


class _Linear(nn.Module):
    """The frame: layouts, resets and lengths around `coefficients` and `read_out`."""

    input_size: int
    batch_first: bool
    state_size: int

    def coefficients(self, x: Float[Tensor, "b t m"]) -> tuple[Tensor, Tensor]:
        """a and b of h_t = a_t h_{t-1} + b_t."""
        raise NotImplementedError

    def read_out(self, h: Tensor, x: Float[Tensor, "b t m"]) -> Tensor:
        return h

    def forward(
        self,
        input: Float[Tensor, "..."] | PackedSequence,
        hx: Any = None,
        *,
        reset: Bool[Tensor, "..."] | None = None,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """(output, h): output laid out as input, h [1 b n] after the last step ([1 n] without a batch).

        hx: the state before the first step, [1 b n]. reset and lengths: as `lmlab.recurrent.GRU`.
        Under autocast it runs in the type of its parameters.
        """
        if autocast_is_on(input.data):
            found: tuple[Any, Any] = in_own_precision(self, input, hx, reset=reset, lengths=lengths)
            return found
        if isinstance(input, PackedSequence):
            return self._packed(input, hx, reset, lengths)
        check_input(self, input, False)
        single = input.dim() == 2
        check_reset(reset, tuple(input.shape[:-1]))
        x = input[None] if single else input if self.batch_first else input.transpose(0, 1)
        check_lengths(lengths, x.shape[0], x.shape[1])
        (h0,) = check_state(hx, ("hx",), (1, x.shape[0], self.state_size), input, single, None)
        h0 = h0[0].to(self._state_dtype(input.dtype))
        a, b = self.coefficients(x)
        if reset is not None:
            cut = reset[None] if single else reset if self.batch_first else reset.T
            a = torch.where(cut[..., None], torch.zeros_like(a[:1, :1]), a)
        h = linear_scan(a, b, h0)
        y, last = self.read_out(h, x), h[:, -1] if h.shape[1] else h0
        if lengths is not None:
            lengths = lengths.to(x.device)
            last = h[torch.arange(h.shape[0], device=x.device), lengths - 1]
            there = torch.arange(h.shape[1], device=x.device) < lengths[:, None]
            y = torch.where(there[..., None], y, torch.zeros_like(y))
        if single:
            return y[0], last
        return (y if self.batch_first else y.transpose(0, 1)), last[None]

    def _packed(
        self, input: PackedSequence, hx: Any, reset: Any, lengths: Any
    ) -> tuple[PackedSequence, Tensor]:
        if reset is not None or lengths is not None:
            raise ValueError("a PackedSequence brings its own lengths and takes no reset: unpack it first")
        padded, lengths = pad_packed_sequence(input, batch_first=self.batch_first)
        y, last = self(padded, hx, lengths=lengths)
        packed = nn.utils.rnn.pack_padded_sequence(y, lengths, self.batch_first, enforce_sorted=False)
        return packed._replace(
            sorted_indices=input.sorted_indices, unsorted_indices=input.unsorted_indices
        ), last

    def _state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype


class MinGRU(_Linear):
    """z = σ(W_z x + b_z), h' = (1−z)⊙h + z⊙(W_m x + b_m), from Feng et al., arXiv 2410.01201.

    Gates see x only, so the layer is linear in its state: another model than a GRU, not a faster one.
    `weight_ih_l0` is W_z over W_m, [2n, m]; `bias_ih_l0` [2n].
    """

    def __init__(self, input_size: int, hidden_size: int, *, batch_first: bool = False) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.state_size = input_size, hidden_size, hidden_size
        self.batch_first = batch_first
        self.weight_ih_l0 = nn.Parameter(torch.empty(2 * hidden_size, input_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(2 * hidden_size))
        bound = 1 / math.sqrt(hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def coefficients(self, x: Float[Tensor, "b t m"]) -> tuple[Tensor, Tensor]:
        z, m = nn.functional.linear(x, self.weight_ih_l0, self.bias_ih_l0).chunk(2, -1)
        return torch.sigmoid(-z), torch.sigmoid(z) * m


class LRU(_Linear):
    """h' = λ⊙h + γ⊙(B x), y = Re(C h) + D⊙x, λ = exp(−exp ν + i exp θ), γ = sqrt(1 − |λ|²).

    The linear recurrent unit of Orvieto et al., arXiv 2303.06349; |λ| starts in [0.9, 0.999]. The state is
    complex, [1 b state_size]; D⊙x needs hidden_size = input_size, else D is a matrix.
    """

    def __init__(
        self, input_size: int, hidden_size: int, state_size: int | None = None, *, batch_first: bool = False
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.batch_first = input_size, hidden_size, batch_first
        self.state_size = n = hidden_size if state_size is None else state_size
        size = torch.empty(n).uniform_(0.9**2, 0.999**2).sqrt()
        self.nu = nn.Parameter((-size.log()).log())
        self.theta = nn.Parameter(torch.empty(n).uniform_(1e-4, math.pi / 10).log())
        self.B = nn.Parameter(torch.randn(n, input_size, 2) / math.sqrt(2 * input_size))
        self.C = nn.Parameter(torch.randn(hidden_size, n, 2) / math.sqrt(n))
        shape = (hidden_size,) if hidden_size == input_size else (hidden_size, input_size)
        self.D = nn.Parameter(torch.randn(shape) / (1 if len(shape) == 1 else math.sqrt(input_size)))

    def coefficients(self, x: Float[Tensor, "b t m"]) -> tuple[Tensor, Tensor]:
        decay = -self.nu.exp()
        lam = torch.exp(torch.complex(decay, self.theta.exp()))
        gamma = torch.sqrt(-torch.expm1(2 * decay))
        parts = [nn.functional.linear(x, self.B[..., part]) * gamma for part in (0, 1)]
        return lam[None, None], torch.complex(*parts)

    def read_out(self, h: Tensor, x: Float[Tensor, "b t m"]) -> Tensor:
        y = nn.functional.linear(h.real, self.C[..., 0]) - nn.functional.linear(h.imag, self.C[..., 1])
        return y + (self.D * x if self.D.ndim == 1 else nn.functional.linear(x, self.D))

    def _state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.complex128 if dtype == torch.float64 else torch.complex64
