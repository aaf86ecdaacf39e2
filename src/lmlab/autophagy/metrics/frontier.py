"""The divergence frontier between two laws, and MAUVE: its area after both are put into clusters.

Source: Pillutla et al., arXiv:2102.01454.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lmlab.autophagy.checks import whole
from lmlab.autophagy.metrics.vectors import as_pair
from lmlab.autophagy.theory import distribution

_WIDTH = 64  # directions that rows of ids are projected to
_ROUNDS = 50


def frontier_area(
    p: Float[np.ndarray, " v"] | Sequence[float],
    q: Float[np.ndarray, " v"] | Sequence[float],
    *,
    scale: float = 5.0,
    points: int = 25,
) -> float:
    """Area under (exp(−scale·KL(q‖r)), exp(−scale·KL(p‖r))) over mixtures r = x p + (1−x) q, in [0, 1].

    1 for p = q; symmetric. Probabilities [v]. x runs from 1e-6 to 1 − 1e-6 in `points` equal steps; the
    ends (1, 0) and (0, 1) are added, and the area is the trapezoids'.
    """
    a, b = distribution("p", p), distribution("q", q)
    if a.size != b.size:
        raise ValueError(f"p and q must have one length, got {a.size} and {b.size}")
    if not scale > 0:
        raise ValueError(f"scale must be a number > 0, got {scale!r}")
    x = np.linspace(1e-6, 1.0 - 1e-6, whole("points", points, 1))[:, None]
    mixtures = x * a + (1.0 - x) * b
    across = np.concatenate([[1.0], np.exp(-scale * _kl(b, mixtures)), [0.0]])
    up = np.concatenate([[0.0], np.exp(-scale * _kl(a, mixtures)), [1.0]])
    return float(((across[:-1] - across[1:]) * (up[:-1] + up[1:]) / 2.0).sum())


def _kl(p: np.ndarray, mixtures: np.ndarray) -> np.ndarray:
    """KL(p‖r) in nats for each mixture r, which has mass wherever p has."""
    held = p > 0
    return np.asarray((p[held] * (np.log(p[held]) - np.log(mixtures[:, held]))).sum(axis=1))


def mauve(
    real: np.ndarray, fake: np.ndarray, *, clusters: int | None = None, scale: float = 5.0, seed: int = 0
) -> float:
    """frontier_area of the shares of real and fake rows in `clusters` joint k-means clusters.

    Rows of numbers [n d] are taken as they are: give embeddings where there are some. Rows of integer ids
    [n t] stand for how often they hold each id (square roots of the shares, in 64 random directions): that
    sees which words are used, not their order. clusters None: a tenth of the smaller set, at least 2.
    """
    if clusters is not None:
        whole("clusters", clusters, 2)
    rng = np.random.default_rng(seed)
    if np.asarray(real).dtype.kind in "iu" and np.asarray(fake).dtype.kind in "iu":
        real, fake = _bags(np.asarray(real), np.asarray(fake), rng)
    a, b = as_pair(real, fake, 2, ("real", "fake"))
    rows = np.concatenate([a, b])
    k = max(2, min(a.shape[0], b.shape[0]) // 10) if clusters is None else clusters
    labels = _k_means(rows - rows.mean(axis=0), min(k, rows.shape[0]), rng)
    shares = [np.bincount(part, minlength=k) / part.size for part in np.split(labels, [a.shape[0]])]
    return frontier_area(shares[0], shares[1], scale=scale)


def _bags(real: np.ndarray, fake: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Square roots of each row's shares of ids, in a few random directions."""
    if real.ndim != 2 or fake.ndim != 2 or min(real.size, fake.size) == 0:
        raise ValueError(f"real and fake must be rows of ids [n t], got {real.shape} and {fake.shape}")
    ids, renamed = np.unique(np.concatenate([real.ravel(), fake.ravel()]), return_inverse=True)
    directions = rng.standard_normal((ids.size, _WIDTH)) if ids.size > _WIDTH else np.eye(ids.size)

    def bags(renamed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        kinds, counts = np.unique(
            renamed + np.repeat(np.arange(shape[0]), shape[1]) * ids.size, return_counts=True
        )
        row, kind = np.divmod(kinds, ids.size)
        found = np.zeros((shape[0], directions.shape[1]))
        weights = np.sqrt(counts / shape[1])
        # Few different ids a row: add their directions up, row after row.
        first = np.searchsorted(row, np.arange(shape[0]))
        for begin in range(0, shape[0], 4096):
            end = min(begin + 4096, shape[0])
            low, high = first[begin], first[end] if end < shape[0] else row.size
            parts = directions[kind[low:high]] * weights[low:high, None]
            found[begin:end] = np.add.reduceat(parts, first[begin:end] - low, axis=0)
        return found

    renamed = renamed.reshape(-1)
    return bags(renamed[: real.size], real.shape), bags(renamed[real.size :], fake.shape)


def _k_means(rows: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Labels [n] by Lloyd's rounds from a k-means++ start; an empty cluster takes the row farthest off."""
    norms = np.einsum("nd,nd->n", rows, rows)
    centres = np.empty((k, rows.shape[1]))
    centres[0] = rows[rng.integers(rows.shape[0])]
    nearest = ((rows - centres[0]) ** 2).sum(axis=1)
    for i in range(1, k):
        total = nearest.sum()
        chosen = rng.choice(rows.shape[0], p=nearest / total) if total > 0 else rng.integers(rows.shape[0])
        centres[i] = rows[chosen]
        nearest = np.minimum(nearest, ((rows - centres[i]) ** 2).sum(axis=1))
    labels = np.full(rows.shape[0], -1)
    for _ in range(_ROUNDS):
        found = np.empty_like(labels)
        distance = np.empty(rows.shape[0])
        for begin in range(0, rows.shape[0], 2048):
            part = slice(begin, begin + 2048)
            squared = norms[part, None] - 2.0 * rows[part] @ centres.T + (centres**2).sum(axis=1)
            found[part] = squared.argmin(axis=1)
            distance[part] = squared.min(axis=1)
        if (found == labels).all():
            break
        labels = found
        counts = np.bincount(labels, minlength=k)
        sums = np.stack([np.bincount(labels, column, minlength=k) for column in rows.T], axis=1)
        centres = sums / np.maximum(counts, 1)[:, None]
        empty = np.flatnonzero(counts == 0)
        if empty.size:
            centres[empty] = rows[np.argsort(-distance, kind="stable")[: empty.size]]
    return labels
