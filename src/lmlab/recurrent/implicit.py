"""Gradients of a solved recurrence: one reversed scan with the true Jacobian, whatever the solver was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmlab.recurrent.cells import NotTraceable, linearize
from lmlab.recurrent.precision import off
from lmlab.recurrent.problem import Problem
from lmlab.recurrent.sweeps import Window, scan

MEMORY = 2**26
"""Bytes of Jacobians that backward holds at a time."""


def attach(problem: Problem, states: Tensor) -> tuple[Tensor, Tensor]:
    """The states tied to cell, inputs and h0, and f at the states before each step, outside the graph.

    f is evaluated once for all t, so the graph holds the cell's parameters, whatever tensors it closes over,
    u and h0. Its cotangent is λ_t = g_t + J*_{t+1} λ_{t+1}.
    """
    before = Window(problem.cell, problem.u, problem.h0, problem.reset).before(states)
    f = problem.cell.step(before, problem.u)
    if f.requires_grad:
        tied: Tensor = _Implicit.apply(f, states, problem, before.detach())
        return tied, f.detach()
    return states, f


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, states: Tensor, problem: Problem, before: Tensor) -> Tensor:
        ctx.problem, ctx.before = problem, before
        return states.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "solve has no second derivatives: differentiate once, or use linear_scan or an unrolled loop"
            )
        problem: Problem = ctx.problem
        window = Window(problem.cell, problem.u.detach(), problem.h0.detach(), problem.reset)
        with off(g.device.type):  # the caller may differentiate inside autocast
            try:
                lam = by_scan(window, ctx.before, g)
            except NotTraceable:
                lam = by_steps(window, ctx.before, g)
        return lam, None, None, None


def by_scan(window: Window, before: Tensor, g: Tensor) -> Tensor:
    """λ over stretches of time, the last first, so that few Jacobians are held at once."""
    b, t, n = before.shape
    dense = window.cell.structure == "dense"
    size = max(1, min(t, MEMORY // (b * n * (n if dense else 2) * g.element_size())))
    lam = torch.empty_like(g)
    carry = torch.zeros_like(g[:, 0])  # J*_{t+1} λ_{t+1} of the step after the stretch
    for last in range(t, 0, -size):
        first = max(0, last - size)
        part = slice(first, last)
        here = Window(window.cell, window.u[:, part], window.carry, _cut(window.reset, part))
        _, j = linearize(window.cell, before[:, part], here.u)
        adjoint = _adjoint(window.cell.structure, here.masked(j))
        driven = g[:, part].clone()
        driven[:, -1] += carry
        ahead = torch.cat([adjoint[:, 1:], torch.zeros_like(adjoint[:, :1])], 1)
        lam[:, part] = scan(window.cell.structure, ahead, driven, None, reverse=True)
        carry = scan(window.cell.structure, adjoint[:, :1], torch.zeros_like(g[:, :1]), lam[:, first])[:, 0]
    return lam


def _adjoint(structure: str, j: Tensor) -> Tensor:
    return j.conj().resolve_conj() if structure == "diagonal" else j.mH


def by_steps(window: Window, before: Tensor, g: Tensor) -> Tensor:
    """The same by one vector-Jacobian product a step, for a cell that torch.func can't trace."""
    lam, carry = torch.empty_like(g), torch.zeros_like(g[:, 0])
    for k in range(g.shape[1] - 1, -1, -1):
        lam[:, k] = g[:, k] + carry
        h = before[:, k].detach().requires_grad_()
        with torch.enable_grad():
            f = window.cell.step(h, window.u[:, k])
        (carry,) = torch.autograd.grad(f, h, lam[:, k])
        if window.reset is not None:
            carry = torch.where(window.reset[:, k, None], torch.zeros_like(carry), carry)
    return lam


def _cut(reset: Tensor | None, part: slice) -> Tensor | None:
    return None if reset is None else reset[:, part]
