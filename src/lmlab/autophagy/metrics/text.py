"""Diversity of rows of ids: entropy, self-BLEU, and how much of the real n-grams is still there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def _grams(rows: np.ndarray | Sequence[Sequence[int]], n: int, v: int) -> np.ndarray:
    """All n-grams of all rows as 64-bit codes to base `v`, or as structured rows when they don't fit."""
    ids = np.asarray(rows)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(f"rows must be integer ids [n t], got {ids.dtype} {ids.shape}")
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n!r}")
    ids = ids.astype(np.int64)
    width = ids.shape[1] - n + 1
    if width < 1:
        return np.zeros(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(ids, n, axis=1).reshape(-1, n)
    if v**n < 2**63:
        return np.asarray(windows @ (v ** np.arange(n - 1, -1, -1, dtype=np.int64)))
    return np.ascontiguousarray(windows).view([("", np.int64)] * n).ravel()


def _base(*sets: np.ndarray | Sequence[Sequence[int]]) -> int:
    arrays = [np.asarray(rows) for rows in sets]
    low = min((int(a.min()) for a in arrays if a.size), default=0)
    if low < 0:
        raise ValueError(f"rows must hold ids >= 0, got {low}")
    return 1 + max((int(a.max()) for a in arrays if a.size), default=0)


def ngram_entropy(rows: np.ndarray, n: int = 1) -> float:
    """Entropy of the n-grams of all rows together, in bits; nan if there are none."""
    grams = _grams(rows, n, _base(rows))
    if grams.size == 0:
        return float("nan")
    p = np.unique(grams, return_counts=True)[1] / grams.size
    return float(-(p * np.log2(p)).sum())


def ngram_coverage(real: np.ndarray, fake: np.ndarray, *, n: int = 1, max_count: int | None = None) -> float:
    """Share of the distinct n-grams of `real` that occur in `fake`; nan if there are none.

    max_count: only n-grams that `real` has at most so often, the tail of the law; None: all.
    """
    v = _base(real, fake)
    kinds, counts = np.unique(_grams(real, n, v), return_counts=True)
    if max_count is not None:
        kinds = kinds[counts <= max_count]
    if kinds.size == 0:
        return float("nan")
    return float(np.isin(kinds, np.unique(_grams(fake, n, v))).mean())
