"""One direction of one layer of RNN, GRU or LSTM: a compiled loop over time, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.recurrent.kernels import kernels, raw
from lmlab.recurrent.precision import off
from lmlab.recurrent.rows import Rows
from lmlab.recurrent.unfused import unfused

KINDS = {"RNN_TANH": 0, "RNN_RELU": 1, "GRU": 2, "LSTM": 3}
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}
BUDGET = 256 * 2**20
"""Bytes of gates that one call keeps for backward; above, they are computed again, some steps at a time."""
LEAST_CHUNK = 64
OWN_PRODUCTS = 512
"""Matrices up to this size are multiplied by kernels made for tall, narrow products; larger ones by torch."""
NEWTON_CHANNELS, NEWTON_STEPS = 6, 64
"""A diagonal cell with so few channels, and so many steps, is solved by Newton's method over time."""


def fused(
    kind: str,
    diagonal: bool,
    rows: Rows,
    x: Tensor,
    state: tuple[Tensor, ...],
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    report: dict[str, Any] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs [rows n] and the state after. x [rows m]; state (h,) or, for an LSTM, (h, c), each [b n].

    report: takes what ran, in the form of a module's `last_solution`.

    weights: weight_ih [gates·n, m], weight_hh [gates·n, n], or [gates·n] if diagonal, and the biases.
    """
    c = state[1] if len(state) == 2 else None
    inputs = (x, state[0], c, *weights)
    report = {} if report is None else report
    if torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in inputs):
        y, *after = _Layer.apply(*inputs, kind, diagonal, rows, report)
        return y, tuple(after)
    ran = _run(inputs, kind, diagonal, rows, False, report)
    return ran.y, tuple(ran.state)


def run_states(
    kind: str,
    diagonal: bool,
    state: Tensor,
    u: Tensor,
    reset: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    report: dict[str, Any],
) -> Tensor:
    """Every state [b t n] from `state` [b n] and projections u [b t gates·n], outside the graph.

    An LSTM's state is h and c side by side. reset: bool [b t].
    """
    b, t, width = u.shape
    n = width // GATES[kind]
    cut = None if reset is None else reset.reshape(-1).contiguous()
    rows = Rows(b, torch.arange(t), t, cut=cut)
    own = u.detach().reshape(b * t, width).contiguous()
    y = own.new_empty(b * t, n)
    parts = [part.detach().clone(memory_format=torch.contiguous_format) for part in state.split(n, -1)]
    if kind != "LSTM":
        _loop(kind, diagonal, rows, own, parts, w_hh, b_hh, y, False, report)
        return y.view(b, t, n)
    own = own.clone() if own.data_ptr() == u.data_ptr() else own  # gates are written over the projections
    kept = _loop(kind, diagonal, rows, own, parts, w_hh, b_hh, y, True, report)
    assert kept is not None and kept.extra is not None
    i, f, g, _ = kept.gates.view(b, t, 4, n).unbind(2)
    return torch.cat([y.view(b, t, n), f * kept.extra.view(b, t, n) + i * g], -1)


@dataclass
class _Kept:
    """What the loop leaves for its gradient: gates over the projections, and states before each step."""

    gates: Tensor
    prev: Tensor
    extra: Tensor | None
    tanh_c: Tensor | None


def _loop(
    kind: str,
    diagonal: bool,
    rows: Rows,
    u: Tensor,
    state: list[Tensor],
    w_hh: Tensor,
    b_hh: Tensor | None,
    y: Tensor,
    keep: bool,
    report: dict[str, Any],
) -> _Kept | None:
    """Runs the steps of `rows`; y and `state` are written in place, u becomes the gates if they are kept."""
    kept = None
    if keep:
        blank = y.new_empty if rows.lengths is None else y.new_zeros
        extra = blank(y.shape) if kind in ("GRU", "LSTM") else None
        kept = _Kept(u, blank(y.shape), extra, blank(y.shape) if kind == "LSTM" else None)
    w_hh = w_hh.detach().contiguous()
    b_hh = None if b_hh is None else b_hh.detach().contiguous()
    report |= {"iterations": 1, "residual": 0.0, "converged": True, "method": "sequential"}
    few = y.shape[1] <= NEWTON_CHANNELS and rows.steps >= NEWTON_STEPS
    if diagonal and few and rows.lengths is None and kind != "LSTM":
        sweeps, residual, repaired = kernels(u).forward_by_channel(
            KINDS[kind],
            True,
            rows.reverse,
            raw(rows.starts),
            rows.row_step,
            raw(rows.cut),
            raw(u),
            raw(w_hh),
            raw(b_hh),
            raw(state[0]),
            raw(y),
            *((None, None) if kept is None else (raw(kept.prev), raw(kept.extra))),
            torch.get_num_threads(),
        )
        method = "newton+sequential" if repaired else "newton"
        report |= {"iterations": sweeps, "residual": residual, "method": method}
        return kept
    kernels(u).forward(
        KINDS[kind],
        diagonal,
        rows.reverse,
        raw(rows.starts),
        rows.row_step,
        raw(rows.lengths),
        raw(rows.cut),
        raw(u),
        raw(w_hh),
        raw(b_hh),
        raw(state[0]),
        raw(state[1]) if kind == "LSTM" else None,
        raw(y),
        *((None, None, None) if kept is None else (raw(kept.prev), raw(kept.extra), raw(kept.tanh_c))),
        torch.get_num_threads(),
    )
    return kept


def _projected(x: Tensor, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
    """x W_ihᵀ + b_ih"""
    out = x.new_empty(x.shape[0], w_ih.shape[0])
    if max(w_ih.shape) > OWN_PRODUCTS:
        return torch.mm(x, w_ih.T, out=out) if b_ih is None else torch.addmm(b_ih, x, w_ih.T, out=out)
    weights = raw(_plain(w_ih)), raw(_plain(b_ih))
    kernels(x).rows_times(raw(x), *weights, raw(out), True, torch.get_num_threads())
    return out


def _times(du: Tensor, w: Tensor) -> Tensor:
    """du W"""
    if max(w.shape) > OWN_PRODUCTS:
        return du @ w
    out = du.new_empty(du.shape[0], w.shape[1])
    kernels(du).rows_times(raw(du), raw(_plain(w)), None, raw(out), False, torch.get_num_threads())
    return out


def _outer(du: Tensor, first: int, x: Tensor, out: Tensor, sums: Tensor | None) -> None:
    """out = duᵀ x and sums = the column sums of du, over as many columns from `first` as out has rows."""
    if max(out.shape) > OWN_PRODUCTS:
        part = du[:, first : first + out.shape[0]]
        torch.mm(part.T, x, out=out)
        if sums is not None:
            torch.sum(part, 0, out=sums)
        return
    kernels(du).outer_sum(raw(du), first, raw(x), raw(out), raw(sums), torch.get_num_threads())


def _diagonal(du: Tensor, first: int, h: Tensor, out: Tensor, sums: Tensor | None) -> None:
    """out = the column sums of du ⊙ h and sums = those of du, over as many columns from `first` as out has."""
    kernels(du).diagonal_sum(raw(du), first, raw(h), raw(out), raw(sums), torch.get_num_threads())


def _plain(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().contiguous()


@dataclass
class _Ran:
    """Outputs, the state after, and what a gradient needs: gates, or the pieces and the states that they began with."""

    y: Tensor
    state: list[Tensor]
    kept: _Kept | None
    chunks: list[tuple[int, int]]
    starts: list[list[Tensor]]


def _run(
    inputs: tuple[Any, ...], kind: str, diagonal: bool, rows: Rows, keep: bool, report: dict[str, Any]
) -> _Ran:
    x, h, c, w_ih, w_hh, b_ih, b_hh = inputs
    u = _projected(x.detach(), w_ih, b_ih)
    state = [
        part.detach().clone(memory_format=torch.contiguous_format) for part in (h, c) if part is not None
    ]
    shape = (x.shape[0], h.shape[1])
    y = x.new_empty(shape) if rows.lengths is None else x.new_zeros(shape)
    chunks = _chunks(kind, rows, y) if keep else [(0, rows.steps)]
    kept, starts = None, []
    for first, last in chunks:
        starts.append([part.clone() for part in state] if len(chunks) > 1 else [])
        part = rows if len(chunks) == 1 else rows.part(first, last)
        kept = _loop(kind, diagonal, part, u, state, w_hh, b_hh, y, keep and len(chunks) == 1, report)
    return _Ran(y, state, kept, chunks, starts)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        inputs, (kind, diagonal, rows, report) = given[:7], given[7:]
        ran = _run(inputs, kind, diagonal, rows, True, report)
        ctx.save_for_backward(*inputs)
        ctx.plan, ctx.kept, ctx.chunks, ctx.starts = (kind, diagonal, rows), ran.kept, ran.chunks, ran.starts
        return (ran.y, *ran.state)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *after: Tensor) -> tuple[Tensor | None, ...]:
        with off("cpu"):  # the caller may differentiate inside autocast
            return _Layer._backward(ctx, dy, *after)

    @staticmethod
    def _backward(ctx: Any, dy: Tensor, *after: Tensor) -> tuple[Tensor | None, ...]:
        x, h, c, w_ih, w_hh, b_ih, b_hh = ctx.saved_tensors
        kind, diagonal, rows = ctx.plan
        inputs = (x, h, c, w_ih, w_hh, b_ih, b_hh)
        if torch.is_grad_enabled():
            return (*_differentiable(inputs, ctx.needs_input_grad, ctx.plan, (dy, *after)), *(None,) * 4)
        d_state = [part.clone(memory_format=torch.contiguous_format) for part in after]
        dy = dy.contiguous()
        if ctx.kept is not None:
            gradients = _gradients(ctx.plan, ctx.needs_input_grad, inputs, ctx.kept, dy, d_state)
        else:
            gradients = _by_chunks(ctx, inputs, dy, d_state)
        d_x, *d_weights = gradients
        return (d_x, d_state[0], d_state[1] if c is not None else None, *d_weights, *(None,) * 4)


def _chunks(kind: str, rows: Rows, y: Tensor) -> list[tuple[int, int]]:
    """The steps in the order that they run, cut so that the gates of one piece fit the budget."""
    step = (GATES[kind] + 1) * y.shape[1] * rows.batch * y.element_size()
    if step * rows.steps <= BUDGET:
        return [(0, rows.steps)]
    size = max(LEAST_CHUNK, BUDGET // step)
    pieces = [(first, min(first + size, rows.steps)) for first in range(0, rows.steps, size)]
    return pieces[::-1] if rows.reverse else pieces


def _gradients(
    plan: tuple[str, bool, Rows],
    needs: tuple[bool, ...],
    inputs: tuple[Tensor | None, ...],
    kept: _Kept,
    dy: Tensor,
    d_state: list[Tensor],
) -> list[Tensor | None]:
    """Gradients of x and the weights; `d_state` holds those of the states after, and then of those before."""
    kind, diagonal, rows = plan
    x, _, _, w_ih, w_hh, *_ = inputs
    assert x is not None and w_ih is not None and w_hh is not None
    n = dy.shape[1]
    blank = kept.gates.new_empty if rows.lengths is None else kept.gates.new_zeros
    du, dq = blank(kept.gates.shape), blank(dy.shape) if kind == "GRU" else None
    kernels(dy).backward(
        KINDS[kind],
        diagonal,
        rows.reverse,
        raw(rows.starts),
        rows.row_step,
        raw(rows.lengths),
        raw(rows.cut),
        raw(kept.gates),
        raw(kept.prev),
        raw(kept.extra),
        raw(kept.tanh_c),
        raw(_plain(w_hh)),
        raw(dy),
        raw(d_state[0]),
        raw(d_state[1]) if kind == "LSTM" else None,
        raw(du),
        raw(dq),
        torch.get_num_threads(),
    )
    needs_x, needs_ih, needs_hh, needs_b_ih, needs_b_hh = needs[0], *needs[3:7]
    d_x = _times(du, w_ih) if needs_x else None
    d_ih, d_b_ih = torch.empty_like(w_ih), du.new_empty(du.shape[1])
    _outer(du, 0, x.detach(), d_ih, d_b_ih)
    d_hh = torch.empty_like(w_hh, memory_format=torch.contiguous_format)
    d_b_hh = d_b_ih.clone()
    hidden = _diagonal if diagonal else _outer
    if dq is None:
        hidden(du, 0, kept.prev, d_hh, None)
    else:
        hidden(du, 0, kept.prev, d_hh[: 2 * n], None)
        hidden(dq, 0, kept.prev, d_hh[2 * n :], d_b_hh[2 * n :])
    found = zip((d_ih, d_hh, d_b_ih, d_b_hh), (needs_ih, needs_hh, needs_b_ih, needs_b_hh), strict=True)
    return [d_x, *(gradient if need else None for gradient, need in found)]


def _by_chunks(
    ctx: Any, inputs: tuple[Tensor | None, ...], dy: Tensor, d_state: list[Tensor]
) -> list[Tensor | None]:
    """The same, a piece of time at a time: gates are computed again from the state that the piece began with."""
    x, _, _, w_ih, w_hh, b_ih, b_hh = inputs
    kind, diagonal, rows = ctx.plan
    assert x is not None and w_ih is not None and w_hh is not None
    total: list[Tensor | None] = [
        torch.zeros_like(x) if ctx.needs_input_grad[0] else None,
        None,
        None,
        None,
        None,
    ]
    for (first, last), start in zip(reversed(ctx.chunks), reversed(ctx.starts), strict=True):
        index, there = rows.part(first, last).index()
        own = rows.part(first, last).compact()
        row, there = index[there], there.flatten()
        x_own = x.new_zeros(there.numel(), x.shape[1])
        dy_own = dy.new_zeros(there.numel(), dy.shape[1])
        x_own[there], dy_own[there] = x[row], dy[row]
        state = [part.clone() for part in start]
        u = _projected(x_own, w_ih, b_ih)
        kept = _loop(kind, diagonal, own, u, state, w_hh, b_hh, torch.zeros_like(dy_own), True, {})
        assert kept is not None
        part = _gradients(
            (kind, diagonal, own), ctx.needs_input_grad, (x_own, *inputs[1:]), kept, dy_own, d_state
        )
        if total[0] is not None and part[0] is not None:
            total[0][row] = part[0][there]
        for i in range(1, 5):
            new, old = part[i], total[i]
            total[i] = new if old is None or new is None else old + new
    return total


def _differentiable(
    inputs: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
    plan: tuple[str, bool, Rows],
    grads: tuple[Tensor, ...],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again: the steps are run once more in torch operations."""
    kind, diagonal, rows = plan
    # Views stand in for the inputs: where one input was made from another, its gradient must not be counted twice.
    inputs = tuple(None if y is None else y.view_as(y) for y in inputs)
    x, h, c, w_ih, w_hh, b_ih, b_hh = inputs
    assert x is not None and h is not None and w_ih is not None and w_hh is not None
    wanted = [y for y, need in zip(inputs, needs, strict=False) if need and y is not None]
    y, state = unfused(kind, diagonal, rows, x, (h,) if c is None else (h, c), (w_ih, w_hh, b_ih, b_hh))
    found = iter(torch.autograd.grad((y, *state), wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if need and y is not None else None for y, need in zip(inputs, needs, strict=False)]
