"""One window of steps solved by iteration: jacobi, quasi and newton sweeps, and what counts as solved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lmlab.recurrent.cells import TorchCell, linearize
from lmlab.recurrent.scan import linear_scan

RESIDUALS = 2**15
"""States whose residual is taken at a time."""


@dataclass(frozen=True)
class Window:
    """Steps of some sequences: the state before them is exact, the states in them are wanted.

    u [b w m], carry [b n], reset bool [b w] or None.
    """

    cell: Any
    u: Tensor
    carry: Tensor
    reset: Tensor | None

    def before(self, states: Tensor) -> Tensor:
        """The state before each step; zero where a sequence starts."""
        shifted = torch.cat([self.carry[:, None], states[:, :-1]], 1)
        if self.reset is None:
            return shifted
        return torch.where(self.reset[..., None], torch.zeros_like(shifted), shifted)

    def guess(self) -> Tensor:
        """f(the last known state, u_t) at every step."""
        carry = self.carry[:, None].expand(-1, self.u.shape[1], -1)
        new: Tensor = self.cell.step(carry, self.u)
        return new

    def masked(self, j: Tensor) -> Tensor:
        """Jacobians that lead nowhere across the start of a sequence."""
        if self.reset is None:
            return j
        cut = self.reset.view(*self.reset.shape, *(1,) * (j.ndim - 2))
        return torch.where(cut, torch.zeros_like(j), j)


@dataclass(frozen=True)
class Attempt:
    """The best iterate of a window, with ρ_t of its own states [b w] and the sweeps that it took."""

    states: Tensor
    residual: Tensor
    sweeps: int


def residual(states: Tensor, f: Tensor) -> Tensor:
    """ρ_t = max_i |h_t − f(h_{t−1}, u_t)|_i / (1 + |h_t|_i), [b t]; infinite where it isn't a number."""
    ratio = ((states - f).abs() / (1 + states.abs())).amax(-1)
    return torch.where(torch.isfinite(ratio), ratio, torch.full_like(ratio, torch.inf))


def largest_residual(window: Window, states: Tensor) -> float:
    """max ρ_t, over stretches of time that stay in the cache."""
    b, t, n = states.shape
    size = max(1, RESIDUALS // (b * n))
    worst = 0.0
    for first in range(0, t, size):
        part = slice(first, first + size)
        carry = window.carry if first == 0 else states[:, first - 1]
        here = Window(
            window.cell, window.u[:, part], carry, None if window.reset is None else window.reset[:, part]
        )
        h, cell = states[:, part], here.cell
        step = cell.step_each if isinstance(cell, TorchCell) and cell.runs(here.u) else cell.step
        found = float(((h - step(here.before(h), here.u)).abs() / (1 + h.abs())).max())
        worst = max(worst, found if math.isfinite(found) else math.inf)
    return worst


def apply(structure: str, a: Tensor, h: Tensor) -> Tensor:
    """a_t h_t for a Jacobian of the given structure."""
    if structure == "diagonal":
        return a * h
    if structure == "dense":
        return (a @ h[..., None])[..., 0]
    k = a.shape[-1]
    channels = h.unflatten(-1, (k, -1)).transpose(-1, -2)
    product: Tensor = a @ channels[..., None]
    return product[..., 0].transpose(-1, -2).flatten(-2)


def scan(structure: str, a: Tensor, b: Tensor, h0: Tensor | None, *, reverse: bool = False) -> Tensor:
    """`linear_scan` for a Jacobian of the given structure; a block is a small dense scan for each channel."""
    if structure != "block":
        return linear_scan(a, b, h0, reverse=reverse)
    batch, steps, channels, k, _ = a.shape
    small = a.transpose(1, 2).reshape(batch * channels, steps, k, k)
    driven = b.unflatten(-1, (k, channels)).permute(0, 3, 1, 2).reshape(batch * channels, steps, k)
    start = None if h0 is None else h0.unflatten(-1, (k, channels)).transpose(1, 2).reshape(-1, k)
    h = linear_scan(small, driven, start, reverse=reverse)
    return h.view(batch, channels, steps, k).permute(0, 2, 3, 1).reshape(b.shape)


def diagonal_of(structure: str, j: Tensor) -> Tensor:
    """The diagonal [… n] of a Jacobian."""
    if structure == "diagonal":
        return j
    d: Tensor = torch.diagonal(j, dim1=-2, dim2=-1)
    return d if structure == "dense" else d.transpose(-1, -2).flatten(-2)


def sweep(method: str, window: Window, old: Tensor, f: Tensor, j: Tensor | None) -> Tensor:
    """h = scan(A, f − A·shift(old)): A is 0 (jacobi), the diagonal of J (quasi) or J (newton)."""
    if method == "jacobi" or j is None:
        return f
    structure = window.cell.structure
    if method == "quasi":
        structure, j = "diagonal", diagonal_of(structure, j)
    a = window.masked(j)
    return scan(structure, a, f - apply(structure, a, window.before(old)), window.carry)


def evaluate(method: str, window: Window, states: Tensor) -> tuple[Tensor, Tensor | None]:
    """f and, where the method wants it, J at the states before each step."""
    before = window.before(states)
    if method == "jacobi":
        return window.cell.step(before, window.u), None
    return linearize(window.cell, before, window.u)


def iterate(
    method: str,
    window: Window,
    states: Tensor,
    tol: float,
    max_iter: int,
    on_sweep: Callable[[Tensor], None] | None = None,
) -> Attempt:
    """Sweeps from the iterate `states` until every ρ_t is at most tol, max_iter is spent, or it isn't finite.

    on_sweep sees every iterate, the first one too.
    """
    best: Attempt | None = None
    count = 0
    while True:
        f, j = evaluate(method, window, states)
        rho = residual(states, f)
        if best is None or float(rho.max()) <= float(best.residual.max()):
            best = Attempt(states, rho, count)
        if on_sweep is not None:
            on_sweep(states)
        if float(rho.max()) <= tol or count == max_iter:
            return replace(best, sweeps=count)
        states = sweep(method, window, states, f, j)
        count += 1
        if not bool(torch.isfinite(states).all()):
            return replace(best, sweeps=count)
