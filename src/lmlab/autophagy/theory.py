"""Closed forms and exact recursions that the loops must hit. All for the real law N(0, I)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lmlab.autophagy.checks import check_bias, whole
from lmlab.autophagy.loops import Loop, schedule
from lmlab.autophagy.program import KEPT, REAL, compile_plans


def digamma(x: float) -> float:
    """ψ(x), x > 0: recurrence up to 10, then the asymptotic series (relative 1e-15)."""
    total = 0.0
    while x < 10.0:
        total -= 1.0 / x
        x += 1.0
    y = 1.0 / (x * x)
    series = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y * (1 / 132 - y * 691 / 32760)))))
    return total + math.log(x) - 0.5 / x - series


def trigamma(x: float) -> float:
    """ψ′(x), x > 0, by the same means."""
    total = 0.0
    while x < 10.0:
        total += 1.0 / (x * x)
        x += 1.0
    y = 1.0 / (x * x)
    series = 1 / 6 - y * (1 / 30 - y * (1 / 42 - y * (1 / 30 - y * (5 / 66 - y * 691 / 2730))))
    return total + 1.0 / x + 0.5 * y + series * y / x


def log_variance(n: int, t: int, *, bias: float = 1.0, d: int = 1) -> tuple[float, float]:
    """Mean and variance of log det Σ_t for Synthetic(n), ddof 1. Exact: log det is a sum of log χ²s.

    Raises ValueError for n <= d, where det Σ = 0.
    """
    bias = check_bias(bias)
    whole("t", t, 1)
    whole("d", d, 1)
    if n <= d:
        raise ValueError(f"n must be > d, got n={n!r}, d={d!r}: the covariance of n <= d rows is singular")
    halves = [(n - 1 - i) / 2 for i in range(d)]
    drift = sum(digamma(half) + math.log(2.0 / (n - 1)) for half in halves)
    shrink = (t - 1) * d * math.log(bias) if bias > 0 else (-math.inf if t > 1 else 0.0)
    return t * drift + shrink, t * sum(trigamma(half) for half in halves)


@dataclass(frozen=True, eq=False)
class Moments:
    """mean_square [g]: E m_t², variance [g]: E Σ_t, for each coordinate."""

    mean_square: Float[np.ndarray, " g"]
    variance: Float[np.ndarray, " g"]


def moments(loop: Loop, generations: int, *, bias: float = 1.0, ddof: int = 1) -> Moments:
    """Exact E m_t² and E Σ_t of any loop but a subsample, for any d (coordinates are alike).

    Second moments of all means that are still needed (sets, merged sets, models) are kept in one matrix C:
    a set of n rows from model s has E[m_j m_k] = E[m_s m_k] and E[m_j²] = E[m_s²] + λ v_s/n, and every
    merged mean is a linear combination of set means. No approximation.
    """
    bias = check_bias(bias)
    whole("generations", generations, 1)
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof!r}")
    plans = schedule(loop, generations)
    if any(plan.budget is not None for plan in plans):
        raise ValueError(f"theory.moments: {loop!r} takes a subsample, which has no exact law; use run(…)")
    program = compile_plans(plans, ddof)
    # Places in C: set slots, model slots, the merged mean, the set that is being merged.
    models_at, merged, fresh = program.set_slots, program.set_slots + program.model_slots, -1
    c = np.zeros((merged + 2, merged + 2))
    fresh = merged + 1
    scatter = np.zeros(program.set_slots + 1)  # E S of kept sets, last: of the new one
    variance = np.zeros(program.model_slots)
    merged_scatter = 0.0
    squares, variances = np.empty(generations), np.empty(generations)
    for t, generation in enumerate(program.generations):
        if not generation.onto:
            c[merged, :] = c[:, merged] = 0.0
            merged_scatter = 0.0
        for step in generation.steps:
            at = step.slot if step.slot >= 0 else fresh
            if step.source != KEPT:
                parent = models_at + step.source
                spread = 1.0 if step.source == REAL else bias * variance[step.source]
                line = np.zeros(c.shape[0]) if step.source == REAL else c[parent].copy()
                square = 0.0 if step.source == REAL else c[parent, parent]
                c[at, :] = c[:, at] = line
                c[at, at] = square + spread / step.n
                scatter[step.slot] = (step.n - 1) * spread
            delta = c[at, at] - 2.0 * c[at, merged] + c[merged, merged]
            merged_scatter += step.weight * scatter[step.slot] + step.cross * delta
            line = (1.0 - step.share) * c[merged] + step.share * c[at]
            square = (1.0 - step.share) * line[merged] + step.share * line[at]
            c[merged, :] = c[:, merged] = line
            c[merged, merged] = square
        squares[t] = c[merged, merged]
        variances[t] = merged_scatter / generation.denominator
        if generation.slot >= 0:
            at = models_at + generation.slot
            line, square = c[merged].copy(), c[merged, merged]
            line[at] = square
            c[at, :] = c[:, at] = line
            variance[generation.slot] = variances[t]
    return Moments(squares, variances)


def plateau(n_real: int, n_synth: int, *, bias: float = 1.0) -> tuple[float, float]:
    """(E m², E Σ) of Fresh(n_real, n_synth) for t → ∞: the fixed point of its exact recursion.

    N² a = n_r + n_s² a + n_s λ v;  (N−1) v = (n_r−1) + λ v (n_s−1) + (n_r n_s/N)(1/n_r + a + λ v/n_s).
    """
    lam = check_bias(bias)
    whole("n_real", n_real, 1)
    whole("n_synth", n_synth, 0)
    n = n_real + n_synth
    whole("n_real + n_synth", n, 2)
    cross = n_real * n_synth / n
    matrix = np.array(
        [
            [n * n - n_synth * n_synth, -n_synth * lam],
            [-cross, (n - 1) - lam * (n_synth - 1) * (n_synth > 0) - lam * n_real / n * (n_synth > 0)],
        ],
        dtype=np.float64,
    )
    right = np.array([n_real, (n_real - 1) + n_synth / n], dtype=np.float64)
    a, v = np.linalg.solve(matrix, right)
    return float(a), float(v)


def heterozygosity(p0: Float[np.ndarray, " v"] | Sequence[float], n: int, t: int) -> float:
    """1 − E Σ p_t² of the categorical Synthetic(n): (1 − 1/n)^t (1 − Σ p_0²)."""
    whole("n", n, 1)
    whole("t", t, 0)
    p = np.asarray(p0, dtype=np.float64)
    return float((1.0 - 1.0 / n) ** t * (1.0 - (p**2).sum()))
