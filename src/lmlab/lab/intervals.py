"""Is it a difference? Paired over seeds, with Student's intervals, held down for the number of questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences. low, high: its interval at `level`, nan for one pair; seen: 0 is outside."""

    mean: float
    low: float
    high: float
    level: float
    seen: bool


def paired(
    values: Mapping[str, Sequence[float]], baseline: str, level: float = LEVEL
) -> dict[str, Difference]:
    """Every other row less the baseline's, seed by seed.

    Holm's steps: of m rows the most certain one is asked at 1 - (1 - level)/m, the next at m - 1, and so on;
    after the first whose interval holds 0 no other one is believed.
    """
    base = np.asarray(values[baseline], dtype=np.float64)
    others = {
        name: np.asarray(row, dtype=np.float64) - base for name, row in values.items() if name != baseline
    }
    n, m = len(base), len(others)
    found: dict[str, Difference] = {}
    believed = n > 1
    by_certainty = sorted(others, key=lambda name: -_certainty(others[name]))
    for k, name in enumerate(by_certainty):
        asked = 1 - (1 - level) / (m - k)
        mean = float(others[name].mean())
        half = math.nan
        if n > 1:
            half = t_quantile(0.5 + asked / 2, n - 1) * float(others[name].std(ddof=1)) / math.sqrt(n)
        believed = believed and abs(mean) > half
        found[name] = Difference(mean, mean - half, mean + half, asked, believed)
    return {name: found[name] for name in others}


def _certainty(differences: np.ndarray) -> float:
    """|t|, which orders rows of one length as their p-values do."""
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    mean = abs(float(differences.mean()))
    return mean / deviation if deviation > 0 else math.inf if mean > 0 else 0.0


def t_quantile(p: float, freedom: int) -> float:
    """Student's quantile for 0.5 <= p < 1 by bisection of the distribution function."""
    low, high = 0.0, 1.0
    while _t_distribution(high, freedom) < p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, freedom) < p else (low, middle)
    return (low + high) / 2


@cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return nodes, weights


def _t_distribution(t: float, freedom: int) -> float:
    """P(T <= t), t >= 0: with angle a = atan(t/sqrt(v)) it is 1/2 + c * integral of cos^(v-1) from 0 to a."""
    nodes, weights = _gauss()
    angle = math.atan(t / math.sqrt(freedom))
    inner = (np.cos(angle * (nodes + 1) / 2) ** (freedom - 1) @ weights) * angle / 2
    c = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + c * float(inner)
