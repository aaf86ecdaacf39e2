"""Distances between two sets of rows in R^d."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lmlab.autophagy.generators.gaussian import moments, root


def _rows(name: str, x: np.ndarray, least: int) -> Float[np.ndarray, "n d"]:
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2 or rows.shape[0] < least:
        raise ValueError(f"{name} must be at least {least} rows [n d], got shape {np.shape(x)}")
    return rows


def as_pair(
    x: np.ndarray, y: np.ndarray, least: int, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Both as rows of doubles of one width, at least `least` of each, or ValueError."""
    a, b = _rows(names[0], x, least), _rows(names[1], y, least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{names[0]} and {names[1]} must have one width, got {a.shape[1]} and {b.shape[1]}")
    return a, b


def frechet_gaussian(
    m1: Float[np.ndarray, " d"],
    s1: Float[np.ndarray, "d d"],
    m2: Float[np.ndarray, " d"],
    s2: Float[np.ndarray, "d d"],
) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: |Δm|² + tr(S1 + S2 − 2(S1^½ S2 S1^½)^½).

    The root's trace is the sum of singular values of F1ᵀF2 for any factors F Fᵀ = S: no matrix square root
    with its imaginary parts, and no loss from squaring.
    """
    m1, m2 = np.atleast_1d(np.asarray(m1, np.float64)), np.atleast_1d(np.asarray(m2, np.float64))
    s1, s2 = np.atleast_2d(np.asarray(s1, np.float64)), np.atleast_2d(np.asarray(s2, np.float64))
    cross = np.linalg.svd(root(s1).T @ root(s2), compute_uv=False).sum()
    distance = ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2.0 * cross
    return max(float(distance), 0.0)


def frechet(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Squared Fréchet distance of the Gaussians with the rows' means and unbiased covariances."""
    a, b = as_pair(x, y, 2, ("x", "y"))
    m1, s1 = moments(a, None, 1)
    m2, s2 = moments(b, None, 1)
    return frechet_gaussian(m1, s1, m2, s2)


def _quantile_coupling(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """W₂² of each pair of columns of sorted samples `[n p]`, `[m p]`, coupled by quantile."""
    n, m = x.shape[0], y.shape[0]
    if n == m:
        return np.asarray(((x - y) ** 2).mean(axis=0))
    # Steps of both quantile functions, in units of 1/(n m) so that equal steps are equal.
    edges = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    mass = np.diff(edges, prepend=0) / (n * m)
    i, j = (edges - 1) // m, (edges - 1) // n
    return np.asarray(mass @ (x[i] - y[j]) ** 2)


def w2_squared(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], *, projections: int = 128, seed: int = 0
) -> float:
    """Squared 2-Wasserstein distance of two empirical laws of any sizes; exact for d = 1.

    For d > 1 it is the mean over `projections` random unit directions (sliced distance).
    """
    a, b = as_pair(x, y, 1, ("x", "y"))
    if projections < 1:
        raise ValueError(f"projections must be >= 1, got {projections!r}")
    if a.shape[1] > 1:
        directions = np.random.default_rng(seed).standard_normal((a.shape[1], projections))
        directions /= np.linalg.norm(directions, axis=0)
        a, b = a @ directions, b @ directions
    return float(_quantile_coupling(np.sort(a, axis=0), np.sort(b, axis=0)).mean())
