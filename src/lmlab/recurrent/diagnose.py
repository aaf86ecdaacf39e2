"""Whether parallel methods can help a cell: Lyapunov exponents, and the error sweep by sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lmlab.recurrent.cells import linearize
from lmlab.recurrent.elk import elk
from lmlab.recurrent.implicit import by_scan, by_steps
from lmlab.recurrent.precision import at_least_float32, autocast_is_on, off
from lmlab.recurrent.problem import Problem, read_problem, sequential
from lmlab.recurrent.sweeps import Window, diagonal_of, evaluate, iterate, residual, scan

CHUNK = 32
"""Steps that a tangent vector runs before its length is set back to 1."""
LINEARISED = 1024
"""Steps whose Jacobians are held together."""
TINY = torch.finfo(torch.float64).tiny
MARGIN = 0.1
WORST_GROWTH = 3.0
EARLY = 64
"""Steps that are looked at before more is spent on a verdict."""


@dataclass(frozen=True)
class Lyapunov:
    """How two nearby paths of a cell move apart, per step, in natural logarithms.

    exponent [b]: along the true path. at_guess [b]: along the path of first guesses f(0, u). growth [b]: max over
    s < t of log|J_t … J_s v_s|, the worst passing amplification. verdict: "contractive", where Newton's method
    may be expected to converge over the whole length; "marginal"; or "chaotic", where only step by step works.
    The thresholds were fitted on few draws: the verdict is advice, `solve` tests what it returns.
    """

    exponent: Tensor
    at_guess: Tensor
    growth: Tensor
    verdict: str


def lyapunov(
    cell: Any,
    inputs: Float[Tensor, "b t m"],
    h0: Float[Tensor, "b n"] | None = None,
    *,
    reset: Bool[Tensor, "b t"] | None = None,
) -> Lyapunov:
    """The largest Lyapunov exponent of `cell` under `inputs`; arguments as `solve`.

    A tangent vector is carried along the path (Benettin's method). Where a sequence starts anew it starts anew,
    and the step counts nothing. Raises what `solve` raises for its arguments.
    """
    if autocast_is_on(inputs):
        with off(inputs.device.type):
            return lyapunov(cell, at_least_float32(inputs), at_least_float32(h0), reset=reset)
    with torch.no_grad():
        problem = read_problem(cell, inputs, h0, reset=reset)
        if problem.u.shape[1] == 0 or problem.u.shape[0] == 0:
            raise ValueError(f"inputs must have steps and sequences, got {tuple(inputs.shape)}")
        return diagnose(problem, sequential(problem.cell, problem.u, problem.h0, problem.reset))


def diagnose(problem: Problem, states: Tensor) -> Lyapunov:
    """The same, of a path that is known: states [b t n]."""
    window = Window(problem.cell, problem.u, problem.h0, problem.reset)
    exponent, growth = _tangent(window, window.before(states))
    at_guess, _ = _tangent(window, _guessed_path(problem, window))
    return Lyapunov(exponent, at_guess, growth, _verdict(exponent, at_guess, growth))


def is_contractive(problem: Problem, states: Tensor) -> bool:
    """Whether the verdict of `diagnose` is "contractive"; the second path is only walked if the first allows it."""
    window = Window(problem.cell, problem.u, problem.h0, problem.reset)
    before = window.before(states)
    cut = None if problem.reset is None else problem.reset[:, :EARLY]
    _, growth = _tangent(Window(problem.cell, problem.u[:, :EARLY], problem.h0, cut), before[:, :EARLY])
    if float(growth.max()) >= WORST_GROWTH:
        return False  # the worst growth of more steps is no less: most chaotic cells are known here
    exponent, growth = _tangent(window, before)
    if _verdict(exponent, exponent, growth) != "contractive":
        return False
    at_guess, _ = _tangent(window, _guessed_path(problem, window))
    return _verdict(exponent, at_guess, growth) == "contractive"


def _guessed_path(problem: Problem, window: Window) -> Tensor:
    return window.before(Window(problem.cell, problem.u, torch.zeros_like(problem.h0), None).guess())


def _verdict(exponent: Tensor, at_guess: Tensor, growth: Tensor) -> str:
    if bool((exponent > 0).any()):
        return "chaotic"
    calm = max(float(exponent.max()), float(at_guess.max())) < -MARGIN and float(growth.max()) < WORST_GROWTH
    return "contractive" if calm else "marginal"


def _tangent(window: Window, before: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and worst sum of the logarithms of growth of a tangent vector, in float64."""
    b, t, n = before.shape
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(n, generator=generator, dtype=torch.float64).to(before.device)
    first = (first / first.norm()).expand(b, n)
    reset = window.reset
    v, gains = first, []
    for begin in range(0, t, LINEARISED):
        end = min(begin + LINEARISED, t)
        part = slice(begin, end)
        cut = None if reset is None else reset[:, part]
        here = Window(window.cell, window.u[:, part], window.carry, cut)
        _, j = linearize(window.cell, before[:, part], here.u)
        a = here.masked(j)
        a = (a.abs() if a.is_complex() else a).double()  # |λ| moves a complex tangent's length
        driven = torch.zeros(b, end - begin, n, dtype=torch.float64, device=before.device)
        if cut is not None:
            driven = torch.where(cut[..., None], first[:, None], driven)
        for k in range(0, end - begin, CHUNK):
            path = scan(window.cell.structure, a[:, k : k + CHUNK], driven[:, k : k + CHUNK], v)
            size = path.norm(dim=-1).clamp(min=TINY)
            steps = size.log()
            gains.append(torch.cat([steps[:, :1], steps.diff(dim=1)], 1))
            v = path[:, -1] / size[:, -1:]
            v = torch.where((v.norm(dim=-1) > 0.5)[:, None], v, first)  # a vector that died is replaced
    gain = torch.cat(gains, 1)
    if reset is None:
        return gain.mean(1), _worst(gain)
    gain = gain.masked_fill(reset, 0)
    pieces = [
        [_worst(row[None, i:k]) for i, k in _sequences(cuts)] for row, cuts in zip(gain, reset, strict=True)
    ]
    worst = torch.stack([torch.cat(found).max() for found in pieces])
    return gain.sum(1) / (~reset).sum(1).clamp(min=1), worst


def _worst(gain: Tensor) -> Tensor:
    """The largest sum of neighbouring steps, [b]."""
    total = gain.cumsum(1)
    lowest = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1]], 1).cummin(1).values
    found: Tensor = (total - lowest).amax(1)
    return found


def _sequences(reset: Tensor) -> list[tuple[int, int]]:
    starts = sorted({0, *reset.nonzero()[:, 0].tolist()})
    return list(zip(starts, [*starts[1:], len(reset)], strict=True))


def convergence(
    cell: Any,
    inputs: Float[Tensor, "b t m"],
    h0: Float[Tensor, "b n"] | None = None,
    *,
    methods: tuple[str, ...] = ("jacobi", "quasi", "newton", "elk"),
    max_iter: int = 64,
) -> list[dict[str, Any]]:
    """The error after every sweep over the whole length, for each method.

    Rows of method, iteration (0 is the first guess), residual (max ρ_t), error (largest difference to the
    sequential states) and exact_prefix (steps from the first that agree with these to rounding in every
    sequence). A method ends where its residual is at rounding, at max_iter, or where it isn't finite.
    """
    if autocast_is_on(inputs):
        with off(inputs.device.type):
            inputs, h0 = at_least_float32(inputs), at_least_float32(h0)
            return convergence(cell, inputs, h0, methods=methods, max_iter=max_iter)
    known = ("jacobi", "quasi", "newton", "elk")
    for method in methods:
        if method not in known:
            raise ValueError(f"methods must be among {', '.join(known)}; got {method!r}")
    with torch.no_grad():
        problem = read_problem(cell, inputs, h0)
        truth = sequential(problem.cell, problem.u, problem.h0, None)
        rows: list[dict[str, Any]] = []
        for method in methods:
            for count, states in enumerate(iterates(problem, method, max_iter)):
                rows.append({"method": method, "iteration": count, **_measures(problem, states, truth)})
        return rows


def iterates(problem: Problem, method: str, max_iter: int) -> list[Tensor]:
    """Every iterate [b t n] over the whole length, the first guess too."""
    window = Window(problem.cell, problem.u, problem.h0, problem.reset)
    seen: list[Tensor] = []
    tol = 4 * torch.finfo(problem.h0.dtype).eps
    if method == "elk":
        elk(window, window.guess(), tol, max_iter, seen.append)
    else:
        iterate(method, window, window.guess(), tol, max_iter, seen.append)
    return seen


@torch.no_grad()
def gradient_errors(cell: Any, inputs: Float[Tensor, "b t m"]) -> dict[str, float]:
    """Relative errors of a gradient by one reversed scan, against one product a step.

    "true": with the Jacobian of the cell; "diagonal": with its diagonal, as a quasi-Newton sweep has it. The gradient
    is that of a random sum over all states, in what is added to each state.
    """
    problem = read_problem(cell, inputs, None)
    states = sequential(problem.cell, problem.u, problem.h0, None)
    window = Window(problem.cell, problem.u, problem.h0, None)
    before = window.before(states)
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(states.shape, generator=generator, dtype=torch.float64).to(states)
    exact = by_steps(window, before, g)
    _, j = linearize(problem.cell, before, problem.u)
    diagonal = diagonal_of(problem.cell.structure, j)
    ahead = torch.cat([diagonal[:, 1:], torch.zeros_like(diagonal[:, :1])], 1)
    quasi = scan("diagonal", ahead.conj(), g, None, reverse=True)
    found = {"true": by_scan(window, before, g), "diagonal": quasi}
    return {name: float((value - exact).norm() / exact.norm()) for name, value in found.items()}


def _measures(problem: Problem, states: Tensor, truth: Tensor) -> dict[str, Any]:
    window = Window(problem.cell, problem.u, problem.h0, problem.reset)
    f, _ = evaluate("jacobi", window, states)
    error = (states - truth).abs().amax(-1).amax(0)  # [t]
    level = 1e-12 if states.dtype == torch.float64 else 1e-5
    wrong = (error > level * (1 + truth.abs().amax(-1).amax(0))).nonzero()
    return {
        "residual": float(residual(states, f).max()),
        "error": float(error.max()),
        "exact_prefix": int(wrong[0, 0]) if wrong.numel() else states.shape[1],
    }
