"""A non-linear recurrence solved for all steps at once, tested, repaired where it failed, and differentiable."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from lmlab.recurrent import shooting as multiple
from lmlab.recurrent.cells import NotTraceable, TorchCell
from lmlab.recurrent.diagnose import is_contractive
from lmlab.recurrent.elk import elk
from lmlab.recurrent.implicit import attach
from lmlab.recurrent.precision import at_least_float32, autocast_is_on, off
from lmlab.recurrent.problem import Problem, read_problem, sequential
from lmlab.recurrent.sweeps import Attempt, Window, iterate, largest_residual, residual

METHODS = ("auto", "sequential", "jacobi", "quasi", "newton", "elk", "shooting")
WINDOWS = {"jacobi": 64, "quasi": 128, "newton": 128, "elk": 512}
MEMORY = 2**30
"""Bytes that the Jacobians of one window may take."""
PROBE = 512
LONG = 2048
GPU_WIDTH = 16


class ConvergenceWarning(UserWarning):
    """The states that were returned do not solve the recurrence to the tolerance."""


class ConvergenceError(RuntimeError):
    """The recurrence was not solved to the tolerance; `solution` is the best that was found."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


@dataclass(frozen=True)
class Solution:
    """States of a recurrence and how they were found.

    states [b t n], differentiable in the cell's parameters, the inputs and h0. iterations: most sweeps that any
    window needed (1 for sequential). residual: max ρ_t of these states, computed anew. converged: residual <= tol.
    method: what really ran, as "newton" or "newton+sequential".
    """

    states: Tensor
    iterations: int
    residual: float
    converged: bool
    method: str


def solve(
    cell: Any,
    inputs: Float[Tensor, "b t m"],
    h0: Inexact[Tensor, "b n"] | None = None,
    *,
    method: str = "auto",
    tol: float | None = None,
    max_iter: int = 64,
    window: int | None = None,
    guess: Inexact[Tensor, "b t n"] | None = None,
    reset: Bool[Tensor, "b t"] | None = None,
    on_fail: Literal["sequential", "return", "raise"] = "sequential",
) -> Solution:
    """All states of h_t = cell(h_{t-1}, u_t).

    cell: what `as_cell` takes: a module or cell of torch.nn, a Cell, a plain function (h, u) -> h'.
    inputs [b t m]; h0 [b n], None is zero. method: "auto", "sequential", "jacobi", "quasi", "newton", "elk" or
    "shooting". tol: of the residual ρ_t = max_i |h_t − f(h_{t−1}, u_t)|_i / (1 + |h_t|_i); None is 1e-5 in
    float32, 1e-10 in float64. window: steps that are solved at a time, each window from the exact last state;
    None: the method's own choice. guess [b t n]: the first iterate, with the whole length as window.
    reset: bool [b t], True where a new sequence starts. on_fail, when max_iter is spent or the iterate isn't
    finite: "sequential" keeps the states before the first bad step of each sequence and goes on step by step;
    "return" gives the best iterate and warns (ConvergenceWarning); "raise" raises ConvergenceError.
    Raises ValueError for shapes, values and cells that aren't pure, TypeError for types, and for a cell that
    torch.func can't trace where the method needs a Jacobian. Second derivatives are refused (RuntimeError).
    Under autocast the cell runs outside of it, on float32 for half precision: no residual would reach tol there.
    Source: Lim et al., arXiv 2309.12252; kexue.fm/archives/9783.
    """
    if autocast_is_on(inputs):
        with off(inputs.device.type):
            return solve(
                cell,
                at_least_float32(inputs),
                at_least_float32(h0),
                method=method,
                tol=tol,
                max_iter=max_iter,
                window=window,
                guess=at_least_float32(guess),
                reset=reset,
                on_fail=on_fail,
            )
    _check_options(method, tol, max_iter, window, on_fail)
    problem = read_problem(cell, inputs, h0, reset=reset)
    b, t = problem.u.shape[:2]
    if guess is not None and tuple(guess.shape) != (b, t, problem.h0.shape[1]):
        raise ValueError(f"guess must be [b t n] = {(b, t, problem.h0.shape[1])}, got {tuple(guess.shape)}")
    if tol is None:
        tol = 1e-5 if inputs.dtype == torch.float32 else 1e-10
    if b == 0 or t == 0:
        empty = problem.h0[:, None].expand(-1, t, -1) * 1 + problem.u.sum() * 0
        return Solution(empty, 0, 0.0, True, "sequential" if method == "auto" else method)
    with torch.no_grad():
        plain = Problem(problem.cell, problem.u.detach(), problem.h0.detach(), reset)
        states, sweeps, ran = _run(plain, method, _Limits(tol, max_iter, window, on_fail), guess)
    if torch.is_grad_enabled():
        states, f = attach(problem, states)
        error = float(residual(states.detach(), f).max())
    else:
        error = largest_residual(Window(problem.cell, problem.u, problem.h0, reset), states)
    solution = Solution(states, sweeps, error, error <= tol, ran)
    if not solution.converged and on_fail != "sequential":
        text = f"{ran} left a residual of {error:.3g} after {sweeps} sweeps, tol is {tol:.3g}"
        if on_fail == "raise":
            raise ConvergenceError(text, solution)
        warnings.warn(text, ConvergenceWarning, stacklevel=2)
    return solution


@dataclass(frozen=True)
class _Limits:
    tol: float
    max_iter: int
    window: int | None
    on_fail: str


Found = tuple[Tensor, int, str]


def _run(problem: Problem, method: str, limits: _Limits, guess: Tensor | None) -> Found:
    if method == "auto":
        return _auto(problem, limits, guess)
    if method == "sequential":
        return sequential(problem.cell, problem.u, problem.h0, problem.reset), 1, method
    size = _window(problem, method, limits.window, guess)
    return _windows(problem, method, size, limits, guess)


def _auto(problem: Problem, limits: _Limits, guess: Tensor | None) -> Found:
    """A linear cell by one scan; few channels by Newton; a compiled loop where there is one; then shooting."""
    cell, t = problem.cell, problem.u.shape[1]
    if getattr(cell, "linear", False):
        return _windows(problem, "newton", t, limits, guess)
    on_cpu = problem.u.device.type == "cpu"
    if isinstance(cell, TorchCell) and cell.runs(problem.u):
        report: dict[str, Any] = {}
        states = cell.run(problem.h0, problem.u, problem.reset, report)
        return states, report["iterations"], report["method"]
    if cell.structure != "dense" or guess is not None:
        return _run(problem, "newton", limits, guess)
    if (on_cpu and t < LONG) or (not on_cpu and problem.h0.shape[1] > GPU_WIDTH):
        return _run(problem, "sequential", limits, guess)
    return _by_verdict(problem, limits, "shooting" if on_cpu else "newton")


def _by_verdict(problem: Problem, limits: _Limits, method: str) -> Found:
    """The first steps are run and judged; the rest follows, in parallel if the cell is contractive."""
    first, rest = _split(problem, min(PROBE, problem.u.shape[1]))
    begin = time.perf_counter()
    head = sequential(first.cell, first.u, first.h0, first.reset)
    seconds = (time.perf_counter() - begin) / head.shape[1]
    rest = Problem(rest.cell, rest.u, head[:, -1], rest.reset)
    try:
        worth = is_contractive(first, head)
    except NotTraceable:
        worth = False
    if worth and method == "shooting":
        worth = multiple.promises(Window(rest.cell, rest.u, rest.h0, rest.reset), seconds)
    tail, sweeps, ran = _run(rest, method if worth else "sequential", limits, None)
    return torch.cat([head, tail], 1), sweeps, ran


def _split(problem: Problem, at: int) -> tuple[Problem, Problem]:
    reset = problem.reset
    cut = (None, None) if reset is None else (reset[:, :at], reset[:, at:])
    first = Problem(problem.cell, problem.u[:, :at], problem.h0, cut[0])
    return first, Problem(problem.cell, problem.u[:, at:], problem.h0, cut[1])


def _window(problem: Problem, method: str, window: int | None, guess: Tensor | None) -> int:
    """Steps of a window; a choice of ours keeps its Jacobians under 1 GiB, a given one that does not is refused."""
    b, t = problem.u.shape[:2]
    if method == "shooting":
        return t if window is None else min(window, t)
    n = problem.h0.shape[1]
    dense = problem.cell.structure == "dense" and method != "jacobi"
    step = b * n * (n if dense else 2) * problem.h0.element_size() * (8 if method == "elk" else 1)
    if window is None:
        most = max(1, MEMORY // step)
        return min(t if guess is not None else WINDOWS[method], most, t)
    window = min(window, t)
    if window * step > MEMORY:
        raise ValueError(
            f"window={window} needs {window * step} bytes for Jacobians, more than {MEMORY}: "
            f"window={max(1, MEMORY // step)} fits"
        )
    return window


def _windows(problem: Problem, method: str, size: int, limits: _Limits, guess: Tensor | None) -> Found:
    """Window after window; sequences that fail leave the batch and go on step by step."""
    b, t = problem.u.shape[:2]
    states = problem.h0.new_empty(b, t, problem.h0.shape[1])
    every = torch.arange(b, device=states.device)
    rows: Any = slice(None)  # views while no sequence has left
    carry, most, repaired = problem.h0, 0, False
    for first in range(0, t, size):
        last = min(first + size, t)
        reset = None if problem.reset is None else problem.reset[rows, first:last]
        window = Window(problem.cell, problem.u[rows, first:last], carry, reset)
        start = None if guess is None else guess[rows, first:last].detach().to(states.dtype)
        attempt = _attempt(method, window, start, limits)
        most = max(most, attempt.sweeps)
        if last - first == t:
            states = attempt.states
        else:
            states[rows, first:last] = attempt.states
        bad = attempt.residual > limits.tol
        if limits.on_fail == "sequential" and bool(bad.any()):
            failed, here = bad.any(1), every[rows]
            _step_on(problem, states, here[failed], first + bad[failed].int().argmax(1))
            rows, repaired = here[~failed], True
            if not len(rows):
                break
        carry = states[rows, last - 1]
    return states, most, f"{method}+sequential" if repaired else method


def _attempt(method: str, window: Window, start: Tensor | None, limits: _Limits) -> Attempt:
    if method == "shooting":
        return multiple.shooting(window, limits.tol, limits.max_iter)
    states = window.guess() if start is None else start
    if method == "elk":
        return elk(window, states, limits.tol, limits.max_iter)
    return iterate(method, window, states, limits.tol, limits.max_iter)


def _step_on(problem: Problem, states: Tensor, rows: Tensor, first: Tensor) -> None:
    """Step by step from the first bad step of each row to the end; states are written in place."""
    starts = sorted({int(x) for x in first})
    for begin, end in zip(starts, [*starts[1:], states.shape[1]], strict=True):
        here = rows[first <= begin]
        before = problem.h0[here] if begin == 0 else states[here, begin - 1]
        reset = None if problem.reset is None else problem.reset[here, begin:end]
        states[here, begin:end] = sequential(problem.cell, problem.u[here, begin:end], before, reset)


def _check_options(method: str, tol: float | None, max_iter: int, window: int | None, on_fail: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if tol is not None and not tol > 0:
        raise ValueError(f"tol must be > 0, got {tol}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be >= 1, got {max_iter}")
    if window is not None and window < 1:
        raise ValueError(f"window must be >= 1 steps, or None for the method's own choice; got {window}")
    if on_fail not in ("sequential", "return", "raise"):
        raise ValueError(f"on_fail must be 'sequential', 'return' or 'raise', got {on_fail!r}")
