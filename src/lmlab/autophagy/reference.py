"""The slow oracle: rows that are really drawn, and metrics as loops that read like their definitions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lmlab.autophagy.loops import Loop, schedule


# ---------------------------------------------------------------- laws
def gaussian(
    loop: Loop, *, generations: int, trials: int, d: int = 1, bias: float = 1.0, ddof: int = 1, seed: int = 0
) -> tuple[Float[np.ndarray, "g r d"], Float[np.ndarray, "g r d d"]]:
    """Means and covariances of a Gaussian loop in which every row is drawn, `[r n d]` rows at a time."""
    rng = np.random.default_rng(seed)
    means = np.empty((generations, trials, d))
    covs = np.empty((generations, trials, d, d))
    sets: dict[tuple[int, int], np.ndarray] = {}
    for t, plan in enumerate(schedule(loop, generations)):
        for part in plan.parts:
            name = (part.born, part.model)
            if name in sets:
                continue
            rows = rng.standard_normal((trials, part.n, d))
            if part.model > 0:
                values, vectors = np.linalg.eigh(covs[part.model - 1])
                factor = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
                rows = means[part.model - 1][:, None, :] + math.sqrt(bias) * rows @ factor.transpose(0, 2, 1)
            sets[name] = rows
        data = np.concatenate([sets[part.born, part.model] for part in plan.parts], axis=1)
        u = np.repeat([part.weight for part in plan.parts], [part.n for part in plan.parts])
        if plan.budget is not None:
            chosen = np.array([rng.choice(u.size, plan.budget, replace=False) for _ in range(trials)])
            data, u = np.take_along_axis(data, chosen[:, :, None], axis=1), u[: plan.budget]
        v1, v2 = u.sum(), (u**2).sum()
        means[t] = np.einsum("n,rnd->rd", u, data) / v1
        centred = data - means[t][:, None, :]
        scatter = np.einsum("n,rnd,rne->rde", u, centred, centred)
        covs[t] = scatter / (v1 - v2 / v1 if ddof else v1)
    return means, covs


def categorical(
    loop: Loop, p0: Sequence[float], *, generations: int, trials: int, seed: int = 0
) -> Float[np.ndarray, "g r v"]:
    """Fitted probabilities of a categorical loop in which every row is drawn."""
    rng = np.random.default_rng(seed)
    v = len(p0)
    fitted = np.empty((generations, trials, v))
    for r in range(trials):
        sets: dict[tuple[int, int], np.ndarray] = {}
        for t, plan in enumerate(schedule(loop, generations)):
            for part in plan.parts:
                name = (part.born, part.model)
                if name not in sets:
                    law = p0 if part.model == 0 else fitted[part.model - 1, r]
                    sets[name] = rng.choice(v, part.n, p=law)
            data = np.concatenate([sets[part.born, part.model] for part in plan.parts])
            u = np.repeat([part.weight for part in plan.parts], [part.n for part in plan.parts])
            if plan.budget is not None:
                chosen = rng.choice(data.size, plan.budget, replace=False)
                data, u = data[chosen], u[chosen]
            counts = np.bincount(data, u, minlength=v)
            fitted[t, r] = counts / counts.sum()
    return fitted


# ---------------------------------------------------------------- neighbours
def _distance(x: np.ndarray, y: np.ndarray) -> float:
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)))


def _radii(rows: np.ndarray, k: int) -> list[float]:
    return [sorted(_distance(x, y) for j, y in enumerate(rows) if j != i)[k - 1] for i, x in enumerate(rows)]


def precision_recall(real: np.ndarray, fake: np.ndarray, *, k: int = 5) -> tuple[float, float]:
    def share(centres: np.ndarray, points: np.ndarray) -> float:
        radii = _radii(centres, k)
        inside = [any(_distance(c, x) <= r for c, r in zip(centres, radii, strict=True)) for x in points]
        return sum(inside) / len(inside)

    return share(real, fake), share(fake, real)


def density_coverage(real: np.ndarray, fake: np.ndarray, *, k: int = 5) -> tuple[float, float]:
    inside = [[_distance(c, x) <= r for x in fake] for c, r in zip(real, _radii(real, k), strict=True)]
    density = sum(map(sum, inside)) / (k * len(fake))
    return density, sum(map(any, inside)) / len(real)


# ---------------------------------------------------------------- text
def _grams(row: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def ngram_entropy(rows: Sequence[Sequence[int]], n: int = 1) -> float:
    counts = Counter(gram for row in rows for gram in _grams(row, n))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else math.nan


def ngram_coverage(
    real: Sequence[Sequence[int]],
    fake: Sequence[Sequence[int]],
    *,
    n: int = 1,
    max_count: int | None = None,
) -> float:
    counts = Counter(gram for row in real for gram in _grams(row, n))
    kinds = [gram for gram, c in counts.items() if max_count is None or c <= max_count]
    there = {gram for row in fake for gram in _grams(row, n)}
    return sum(gram in there for gram in kinds) / len(kinds) if kinds else math.nan


def self_bleu(rows: Sequence[Sequence[int]], *, n: int = 4) -> float:
    return sum(
        bleu(row, [other for j, other in enumerate(rows) if j != i], n) for i, row in enumerate(rows)
    ) / len(rows)


def bleu(row: Sequence[int], others: Sequence[Sequence[int]], n: int) -> float:
    """BLEU-n of one row against references: Papineni et al. (2002), without smoothing."""
    product = 1.0
    for order in range(1, n + 1):
        counts = Counter(_grams(row, order))
        references = [Counter(_grams(other, order)) for other in others]
        matched = sum(min(c, max(r[gram] for r in references)) for gram, c in counts.items())
        product *= matched / max(sum(counts.values()), 1)
    closest = min((abs(len(other) - len(row)), len(other)) for other in others)[1]
    brevity = 1.0 if closest <= len(row) else math.exp(1 - closest / len(row)) if len(row) else 0.0
    return float(brevity * product ** (1 / n))
