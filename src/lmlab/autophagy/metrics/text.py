"""Diversity of rows of ids: entropy, self-BLEU, and how much of the real n-grams is still there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lmlab.autophagy.checks import whole

Rows = np.ndarray | Sequence[Sequence[int]]


def _joined(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """All ids one after another, and the length of each row."""
    if isinstance(rows, np.ndarray):
        if rows.ndim != 2 or rows.dtype.kind not in "iu":
            raise ValueError(f"rows must be integer ids [n t], got {rows.dtype} {rows.shape}")
        ids, lengths = rows.ravel(), np.full(rows.shape[0], rows.shape[1])
    else:
        lists = [np.asarray(row) for row in rows]
        if any(row.ndim != 1 or (row.size and row.dtype.kind not in "iu") for row in lists):
            raise ValueError("rows must be integer ids: an array [n t] or a sequence of sequences")
        lengths = np.array([row.size for row in lists], dtype=np.int64)
        ids = np.concatenate([*lists, np.zeros(0, dtype=np.int64)])
    ids = ids.astype(np.int64)
    if ids.size and ids.min() < 0:
        raise ValueError(f"rows must hold ids >= 0, got {int(ids.min())}")
    return ids, lengths


def _grams(ids: np.ndarray, lengths: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit code for each n-gram that lies within a row, and the row. Equal codes are equal n-grams.

    Codes are numbers to base v; where they would not fit, the shorter grams are numbered anew first.
    """
    v = 1 + int(ids.max(initial=0))
    count = ids.size - n + 1
    if count < 1:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    codes, kinds = ids[:count], v
    for back in range(1, n):
        if kinds * v >= 2**63:
            codes = np.unique(codes, return_inverse=True)[1].reshape(-1)
            kinds = count
        codes = codes * v + ids[back : back + count]
        kinds *= v
    ends = np.cumsum(lengths)
    row = np.repeat(np.arange(lengths.size), lengths)[:count]
    inside = np.arange(count) + n <= ends[row]
    return codes[inside], row[inside]


def ngram_entropy(rows: Rows, n: int = 1) -> float:
    """Entropy of the n-grams of all rows together, in bits; nan if there are none."""
    codes, _ = _grams(*_joined(rows), whole("n", n, 1))
    if codes.size == 0:
        return float("nan")
    p = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(p * np.log2(p)).sum())


def ngram_coverage(real: Rows, fake: Rows, *, n: int = 1, max_count: int | None = None) -> float:
    """Share of the distinct n-grams of `real` that occur in `fake`; nan if there are none.

    max_count: only n-grams that `real` has at most so often, the tail of the law; None: all.
    """
    (a, a_lengths), (b, b_lengths) = _joined(real), _joined(fake)
    codes, row = _grams(np.concatenate([a, b]), np.concatenate([a_lengths, b_lengths]), whole("n", n, 1))
    ours = row < a_lengths.size
    kinds, counts = np.unique(codes[ours], return_counts=True)
    if max_count is not None:
        kinds = kinds[counts <= whole("max_count", max_count, 1)]
    if kinds.size == 0:
        return float("nan")
    return float(np.isin(kinds, np.unique(codes[~ours])).mean())


def self_bleu(rows: Rows, *, n: int = 4) -> float:
    """Mean over rows of BLEU-n against all other rows, in [0, 1]: how alike rows are.

    Orders 1 … n weigh alike, counts are clipped by the most that any other row has, the closest other length
    decides the brevity penalty (the shorter on ties), and nothing is smoothed: a row without a match of some
    order has 0. Raises ValueError for fewer than two rows. Source: Zhu et al., arXiv:1802.01886.
    """
    ids, lengths = _joined(rows)
    if lengths.size < 2:
        raise ValueError(f"rows must be at least 2 rows, got {lengths.size}")
    with np.errstate(divide="ignore"):
        score = _log_brevity(lengths)
        for order in range(1, whole("n", n, 1) + 1):
            score += np.log(_clipped_share(ids, lengths, order)) / n
    return float(np.exp(score).mean())


def _clipped_share(ids: np.ndarray, lengths: np.ndarray, n: int) -> np.ndarray:
    """For each row the share of its n-grams that some other row has, counts clipped; 0 for no n-grams."""
    codes, row = _grams(ids, lengths, n)
    kinds, kind = np.unique(codes, return_inverse=True)
    pairs, counts = np.unique(kind.reshape(-1) * lengths.size + row, return_counts=True)
    kind, row = np.divmod(pairs, lengths.size)
    # Of each kind the largest count, how many rows have it, and the largest below it: pairs lie by kind.
    first = np.searchsorted(kind, np.arange(kinds.size))
    if pairs.size == 0:
        return np.zeros(lengths.size)
    most = np.maximum.reduceat(counts, first)
    holders = np.add.reduceat((counts == most[kind]).astype(np.int64), first)
    second = np.maximum.reduceat(np.where(counts == most[kind], 0, counts), first)
    others = np.where((counts == most[kind]) & (holders[kind] == 1), second[kind], most[kind])
    matched = np.bincount(row, np.minimum(counts, others), minlength=lengths.size)
    return np.asarray(matched / np.maximum(lengths - n + 1, 1))


def _log_brevity(lengths: np.ndarray) -> np.ndarray:
    """log of exp(1 − closest/length) for each row that is shorter than the closest other length, else 0."""
    different, index, count = np.unique(lengths, return_inverse=True, return_counts=True)
    penalty = np.zeros(different.size)
    for i in np.flatnonzero(count == 1):
        others = np.delete(different, i)
        closest = others[np.argmin(np.abs(others - different[i]))]  # ascending: the shorter on ties
        if closest > different[i]:
            penalty[i] = 1.0 - closest / different[i] if different[i] else -math.inf
    return penalty[index.reshape(-1)]
