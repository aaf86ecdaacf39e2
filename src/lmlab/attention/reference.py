"""Slow twins of the scale functions: double integrals and Monte Carlo, written as the formulas read."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log, pi, sqrt

import numpy as np


def exact_by_collisions(alpha: float, n: float) -> float:
    """E alpha (1 - sum p_i^2) for normal logits, by the second integral (it holds for any density).

    alpha (1 - n * integral over y of E[e^(2u - e^u)] (E e^(-e^u))^(n-1)),  u = alpha s - y.
    """
    from scipy.integrate import quad

    def mean(g: Callable[[float], float]) -> float:
        value: float = quad(lambda s: exp(-s * s / 2) / sqrt(2 * pi) * g(s), -9.5, 9.5, limit=400)[0]
        return value

    def collisions(y: float) -> float:
        first = mean(lambda s: exp(2 * (alpha * s - y) - exp(min(alpha * s - y, 700))))
        alone = mean(lambda s: exp(-exp(min(alpha * s - y, 700))))
        return first * float(alone ** (n - 1))

    low, high = -6 * alpha - 10, 6 * alpha + 50
    return alpha * (1 - n * float(quad(collisions, low, high, limit=800, points=[0, 3 * alpha])[0]))


def sampled_rows(n: int, rows: int, *, head_dim: int | None, seed: int) -> np.ndarray:
    """[rows, n] logits: independent N(0, 1), or cosines with a fixed direction in head_dim dimensions."""
    rng = np.random.default_rng(seed)
    if head_dim is None:
        return rng.standard_normal((rows, n))
    x = rng.standard_normal((rows, n, head_dim))
    return np.asarray(x[..., 0] / np.linalg.norm(x, axis=-1))


def row_measure(logits: np.ndarray, alpha: float) -> np.ndarray:
    """alpha (1 - sum p_i^2) of each row, p = softmax(alpha s)."""
    scaled = alpha * logits
    p = np.exp(scaled - scaled.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.asarray(alpha * (1 - (p**2).sum(-1)))


def typical_by_sampling(n: int, rows: int, *, seed: int, low: float, high: float) -> float:
    """The alpha that maximises the mean of log a over sampled rows, by golden section."""
    logits = sampled_rows(n, rows, head_dim=None, seed=seed)

    def value(alpha: float) -> float:
        scaled = alpha * logits
        top = scaled.argmax(-1, keepdims=True)
        p = np.exp(scaled - np.take_along_axis(scaled, top, -1))
        p /= p.sum(-1, keepdims=True)
        others = p.copy()
        np.put_along_axis(others, top, 0.0, -1)
        rest = others.sum(-1)
        a = alpha * ((1 - rest) * rest + (others * (1 - others)).sum(-1))
        return float(np.log(a).mean()) if (a > 0).all() else -inf

    ratio = (sqrt(5) - 1) / 2
    while high - low > 1e-3:
        third = (high - low) * ratio
        low, high = (low, low + third) if value(high - third) > value(low + third) else (high - third, high)
    return (low + high) / 2


def annealed_normal(alpha: float, n: float) -> float:
    """alpha (1 - e^(alpha^2) / n)."""
    return alpha * (1 - exp(alpha * alpha) / n)


def log_moment_cosine(alpha: float, head_dim: int) -> float:
    """log E e^(alpha s) of a cosine: Gamma(d/2) (2/alpha)^(d/2-1) I_(d/2-1)(alpha)."""
    from scipy.special import gammaln, ive

    order = head_dim / 2 - 1
    return float(gammaln(head_dim / 2)) + order * log(2 / alpha) + log(float(ive(order, alpha))) + alpha
