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
    p = distribution("p0", p0)
    return float((1.0 - 1.0 / n) ** t * (1.0 - (p**2).sum()))


# ---------------------------------------------------------------- distance to the real law
# Γ(x + ½)/(Γ(x)√x) = 1 − 1/(8x) + 1/(128x²) + …
_ROOT_GAMMA = (-1 / 8, 1 / 128, 5 / 1024, -21 / 32768, -399 / 262144, 869 / 4194304)


def _lost_deviation(n: float) -> float:
    """1 − c₄(n), c₄ = √(2/(n−1)) Γ(n/2)/Γ((n−1)/2): by how much a deviation of n rows is too small."""
    x = (n - 1.0) / 2.0
    if x < 40.0:
        return 1.0 - math.exp(math.lgamma(x + 0.5) - math.lgamma(x)) / math.sqrt(x)
    # The difference of two log gammas would lose the digits that are wanted.
    return -sum(c / x**power for power, c in enumerate(_ROOT_GAMMA, start=1))


def base_w2(n: float, d: int = 1) -> float:
    """E W₂² between N(0, I_d) and a Gaussian fitted to n real rows, ddof 1.

    d = 1: 1/n + 2(1 − c₄(n)), exact; d > 1: d/n + d(d+1)/(4n), to first order in 1/n.
    """
    whole("d", d, 1)
    if not n > 1:
        raise ValueError(f"n must be a number > 1, got {n!r}")
    if d == 1:
        return 1.0 / n + 2.0 * _lost_deviation(n)
    return d * (1.0 + (d + 1) / 4.0) / n


def effective_n(w2: float, d: int = 1) -> float:
    """n_e, the number of real rows that would give this E W₂²: base_w2(n_e) = w2.

    Raises ValueError outside (0, base_w2(1)): no number of rows is as good, or as bad.
    """
    whole("d", d, 1)
    most = 3.0 if d == 1 else d * (1.0 + (d + 1) / 4.0)
    if not 0.0 < w2 < most:
        raise ValueError(f"w2 must be in (0, {most:g}) for d={d}, got {w2!r}")
    if d > 1:
        return most / w2
    low, high = 0.0, math.log(4.0 / w2)  # of log(n − 1): base_w2 falls, and is below 2/(n − 1)
    while low > -700.0 and base_w2(1.0 + math.exp(low)) < w2:
        low -= 4.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if base_w2(1.0 + math.exp(middle)) > w2 else (low, middle)
    return 1.0 + math.exp((low + high) / 2.0)


def admissible_n_synth(bias: float, d: int = 1) -> float:
    """n_s*, the most synthetic rows for which Fresh is no worse than its real rows alone (n_e >= n_r).

    For n_r → ∞ and n_s ≪ n_r; ∞ at bias 1. The derivation is in docs/autophagy.md.
    """
    lam = check_bias(bias)
    whole("d", d, 1)
    if lam == 1.0:
        return math.inf
    spread = 2.0 - lam * lam - 1.5 * (1.0 - lam)
    return 4.0 * ((2.0 - lam) + (d + 1) / 4.0 * spread) / (1.0 - lam) ** 2


def accumulate_limit(n: int) -> float:
    """E Σ_t of Accumulate(n), ddof 0, for t → ∞: Π (1 − 1/(n i²)) = sin(π/√n)/(π/√n)."""
    angle = math.pi / math.sqrt(whole("n", n, 1))
    return math.sin(angle) / angle


# ---------------------------------------------------------------- weighting real rows
def golden_weight(k: float) -> float:
    """The share of weight on real rows that makes E m² of Fresh least, k = n_r/n_s, bias 1.

    k = 1: (√5 − 1)/2.
    """
    if not k > 0:
        raise ValueError(f"k = n_real/n_synth must be a number > 0, got {k!r}")
    return (math.sqrt(k * k + 4.0 * k) - k) / 2.0


def weighted_excess(w: float, k: float) -> float:
    """n_r·E m_t² for t → ∞ of Weighted(Fresh, w), k = n_r/n_s, bias 1: (w² + (1−w)² k)/(2w − w²)."""
    if not 0.0 < w < 1.0:
        raise ValueError(f"w must be a number in (0, 1), got {w!r}")
    if not k > 0:
        raise ValueError(f"k = n_real/n_synth must be a number > 0, got {k!r}")
    return (w * w + (1.0 - w) ** 2 * k) / (2.0 * w - w * w)


# ---------------------------------------------------------------- categorical
def distribution(name: str, p: Float[np.ndarray, " v"] | Sequence[float]) -> Float[np.ndarray, " v"]:
    """`p` as probabilities that sum to 1, or ValueError."""
    found = np.asarray(p, dtype=np.float64)
    if found.ndim != 1 or found.size == 0 or not (found >= 0).all() or abs(found.sum() - 1.0) > 1e-6:
        raise ValueError(f"{name} must be probabilities [v] that sum to 1, got {p!r}")
    return np.asarray(found / found.sum())


def curated(
    p0: Float[np.ndarray, " v"] | Sequence[float],
    reward: Float[np.ndarray, " v"] | Sequence[float],
    t: int,
    *,
    k: int | None = None,
) -> Float[np.ndarray, " v"]:
    """p_t after t generations in which of k draws one is kept with P ∝ exp(reward), without sampling error.

    k None: the limit of many draws, p_t ∝ p_0 exp(t·reward).
    """
    p, r = distribution("p0", p0), np.asarray(reward, dtype=np.float64)
    if r.shape != p.shape or not np.isfinite(r).all():
        raise ValueError(f"reward must be finite numbers [{p.size}], one for each of p0, got {reward!r}")
    whole("t", t, 0)
    held = p > 0
    q, r = p[held], r[held]
    if k is None:
        logits = np.log(q) + t * r
        q = np.exp(logits - logits.max())
        q /= q.sum()
    else:
        for _ in range(t):
            q = _curate(q, r, whole("k", k, 1))
    p[held] = q
    return p


def _curate(p: np.ndarray, r: np.ndarray, k: int) -> np.ndarray:
    """One step: p′(x) = k p(x) e^{r(x)} ∫₀^∞ e^{−s e^{r(x)}} (Σ_y p(y) e^{−s e^{r(y)}})^{k−1} ds.

    Because 1/(a_1 + … + a_k) = ∫ e^{−s Σa} ds. With s = e^z the integrand is analytic for |Im z| < π/2 and
    falls off at both ends, so that equal steps of 0.1 are exact to rounding.
    """
    z = np.arange(-r.max() - math.log(k) - 42.0, -r.min() + 7.0, 0.1)
    log_p = np.log(p)
    step = max(1, (1 << 20) // p.size)
    total = np.zeros(p.size)
    for begin in range(0, z.size, step):
        s = z[begin : begin + step, None]
        decay = np.exp(s + r)
        kept = log_p - decay
        top = kept.max(axis=1, keepdims=True)
        inner = top + np.log(np.exp(kept - top).sum(axis=1, keepdims=True))
        total += np.exp(kept + r + s + (k - 1) * inner).sum(axis=0)
    return np.asarray(total / total.sum())
