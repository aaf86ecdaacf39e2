"""Whether parallel methods can help a cell: Lyapunov exponents, and the error sweep by sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lmlab.recurrent.cells import linearize
from lmlab.recurrent.elk import elk
from lmlab.recurrent.problem import Problem, read_problem, sequential
from lmlab.recurrent.sweeps import Window, evaluate, iterate, residual, scan

CHUNK = 32
"""Steps that a tangent vector runs before its length is set back to 1."""
MARGIN = 0.1
WORST_GROWTH = 3.0


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
    with torch.no_grad():
        problem = read_problem(cell, inputs, h0, reset=reset)
        if problem.u.shape[1] == 0 or problem.u.shape[0] == 0:
            raise ValueError(f"inputs must have steps and sequences, got {tuple(inputs.shape)}")
        return diagnose(problem, sequential(problem.cell, problem.u, problem.h0, problem.reset))


def diagnose(problem: Problem, states: Tensor) -> Lyapunov:
    """The same, of a path that is known: states [b t n]."""
    window = Window(problem.cell, problem.u, problem.h0, problem.reset)
    exponent, growth = _tangent(window, window.before(states))
    guesses = window.before(Window(problem.cell, problem.u, torch.zeros_like(problem.h0), None).guess())
    at_guess, _ = _tangent(window, guesses)
    return Lyapunov(exponent, at_guess, growth, _verdict(exponent, at_guess, growth))


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
    structure = window.cell.structure
    v, total, steps = first, torch.zeros(b, dtype=torch.float64, device=before.device), 0
    since = torch.zeros_like(total)  # log length since the lowest point
    worst = torch.full_like(total, -torch.inf)
    counted = torch.zeros_like(total)
    tiny = torch.finfo(torch.float64).tiny
    for begin in range(0, t, CHUNK):
        part = slice(begin, min(begin + CHUNK, t))
        _, j = linearize(window.cell, before[:, part], window.u[:, part])
        a = (
            window_part(window, part).masked(j).abs()
            if j.is_complex()
            else window_part(window, part).masked(j)
        )
        driven = torch.zeros(b, a.shape[1], n, dtype=torch.float64, device=before.device)
        cut = None if window.reset is None else window.reset[:, part]
        if cut is not None:
            driven = torch.where(cut[..., None], first[:, None], driven)
        path = scan(structure, a.double(), driven, v)
        size = path.norm(dim=-1).clamp(min=tiny).log()
        gain = size - torch.cat([torch.zeros_like(size[:, :1]), size[:, :-1]], 1)
        for k in range(gain.shape[1]):
            step = gain[:, k]
            if cut is not None:
                since = torch.where(cut[:, k], torch.zeros_like(since), since)
                step = torch.where(cut[:, k], torch.zeros_like(step), step)
            since = since.clamp(min=0) + step
            worst = torch.maximum(worst, since)
        total = total + (gain if cut is None else gain.masked_fill(cut, 0)).sum(1)
        counted = counted + (gain.shape[1] if cut is None else (~cut).sum(1))
        v = path[:, -1] / path[:, -1].norm(dim=-1, keepdim=True).clamp(min=tiny)
        v = torch.where((v.norm(dim=-1) > 0.5)[:, None], v, first)
        steps += a.shape[1]
    return total / counted.clamp(min=1), worst


def window_part(window: Window, part: slice) -> Window:
    reset = None if window.reset is None else window.reset[:, part]
    return Window(window.cell, window.u[:, part], window.carry, reset)


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
