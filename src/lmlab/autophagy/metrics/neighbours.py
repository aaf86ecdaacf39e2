"""How well two sets of rows cover each other's neighbourhoods: precision, recall, density, coverage.

Sources: Kynkäänniemi et al., arXiv:1904.06991 (precision, recall); Naeem et al., arXiv:2002.09797 (density,
coverage). A row's ball reaches to its k-th other row; balls are closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lmlab.autophagy.checks import whole
from lmlab.autophagy.metrics.vectors import as_pair

# Squared distances of 1,024 × 2,048 rows at a time: 16 MiB, which a cache still helps with.
_BLOCK, _ACROSS = 1024, 2048
_PAIRS = 1 << 16


@dataclass(frozen=True)
class _Side:
    """Rows moved to a common centre, with their squared norms."""

    rows: np.ndarray
    norms: np.ndarray


def _sides(real: np.ndarray, fake: np.ndarray) -> tuple[_Side, _Side]:
    centre = real.mean(axis=0)
    a, b = real - centre, fake - centre
    return _Side(a, np.einsum("nd,nd->n", a, a)), _Side(b, np.einsum("nd,nd->n", b, b))


def _blocks(a: _Side, b: _Side) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Squared distances |x|² + |y|² − 2xy of a block of `a` to a block of `b`, never all at once."""
    for i in range(0, a.norms.size, _BLOCK):
        here = slice(i, min(i + _BLOCK, a.norms.size))
        doubled = -2.0 * a.rows[here]
        for j in range(0, b.norms.size, _ACROSS):
            there = slice(j, min(j + _ACROSS, b.norms.size))
            squared = doubled @ b.rows[there].T
            squared += a.norms[here, None]
            squared += b.norms[there]
            yield here, there, squared


def _slack(a: _Side, b: _Side) -> float:
    """By how much such a squared distance may be wrong."""
    return float(16.0 * np.finfo(np.float64).eps * (a.norms.max() + b.norms.max()) * max(a.rows.shape[1], 4))


def _exact(a: _Side, i: np.ndarray, b: _Side, j: np.ndarray) -> np.ndarray:
    """Squared distances of pairs of rows by their differences: equal rows are at exactly 0."""
    found = np.empty(i.size)
    for begin in range(0, i.size, _PAIRS):
        part = slice(begin, begin + _PAIRS)
        difference = a.rows[i[part]] - b.rows[j[part]]
        found[part] = np.einsum("pd,pd->p", difference, difference)
    return found


def _radii(side: _Side, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th other row.

    The first block of columns gives each row k candidates; after it only distances below a row's present
    radius matter, and they are few. So nothing is partitioned twice.
    """
    n = side.norms.size
    nearest = np.full((n, k), np.inf)
    which = np.zeros((n, k), dtype=np.int64)
    for here, there, squared in _blocks(side, side):
        own = np.arange(max(here.start, there.start), min(here.stop, there.stop))
        squared[own - here.start, own - there.start] = np.inf
        if there.start == 0:
            near = np.argpartition(squared, min(k, squared.shape[1]) - 1, axis=1)[:, :k]
            nearest[here, : near.shape[1]] = np.take_along_axis(squared, near, axis=1)
            which[here, : near.shape[1]] = near
            continue
        rows, columns = np.divmod(
            np.flatnonzero(squared < nearest[here].max(axis=1)[:, None]), squared.shape[1]
        )
        if rows.size == 0:
            continue
        # The new candidates of each row, side by side, padded with ∞.
        counts = np.bincount(rows, minlength=squared.shape[0])
        changed = np.flatnonzero(counts)
        place = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
        line = np.cumsum(counts > 0)[rows] - 1
        values = np.full((changed.size, k + int(counts.max())), np.inf)
        names = np.zeros(values.shape, dtype=np.int64)
        values[:, :k], names[:, :k] = nearest[here][changed], which[here][changed]
        values[line, k + place] = squared[rows, columns]
        names[line, k + place] = columns + there.start
        near = np.argpartition(values, k - 1, axis=1)[:, :k]
        nearest[here.start + changed] = np.take_along_axis(values, near, axis=1)
        which[here.start + changed] = np.take_along_axis(names, near, axis=1)
    kth = nearest.argmax(axis=1)
    return _exact(side, np.arange(n), side, which[np.arange(n), kth])


def _inside(squared: np.ndarray, radii: np.ndarray, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """Which distances are surely within the radii, and the flat places of those that are too near to say."""
    surely = squared < radii - slack
    maybe = squared <= radii + slack
    maybe ^= surely
    return surely, np.flatnonzero(maybe)


def _checked(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[_Side, _Side]:
    least = whole("k", k, 1) + 1
    return _sides(*as_pair(real, fake, least, ("real", "fake")))


def precision_recall(
    real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], *, k: int = 5
) -> tuple[float, float]:
    """precision: share of fake rows inside any real row's ball; recall: the same with the roles swapped.

    Raises ValueError for fewer than k + 1 rows.
    """
    a, b = _checked(real, fake, k)
    slack = _slack(a, b)
    radii_a, radii_b = _radii(a, k), _radii(b, k)
    precise, recalled = np.zeros(b.norms.size, dtype=bool), np.zeros(a.norms.size, dtype=bool)
    for here, there, squared in _blocks(a, b):
        inside, unsure = _inside(squared, radii_a[here, None], slack)
        _settle(inside, unsure, here, there, a, b, radii_a, along_rows=True)
        precise[there] |= inside.any(axis=0)
        inside, unsure = _inside(squared, radii_b[there], slack)
        _settle(inside, unsure, here, there, a, b, radii_b, along_rows=False)
        recalled[here] |= inside.any(axis=1)
    return float(precise.mean()), float(recalled.mean())


def density_coverage(
    real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], *, k: int = 5
) -> tuple[float, float]:
    """density: real balls around a fake row, its mean over k; coverage: share of real balls with a fake row.

    Raises ValueError for fewer than k + 1 rows.
    """
    a, b = _checked(real, fake, k)
    slack, radii = _slack(a, b), _radii(a, k)
    held, total = np.zeros(a.norms.size, dtype=bool), 0
    for here, there, squared in _blocks(a, b):
        inside, unsure = _inside(squared, radii[here, None], slack)
        _settle(inside, unsure, here, there, a, b, radii, along_rows=True)
        total += int(np.count_nonzero(inside))
        held[here] |= inside.any(axis=1)
    return total / (k * b.norms.size), float(held.mean())


def _settle(
    inside: np.ndarray,
    unsure: np.ndarray,
    here: slice,
    there: slice,
    a: _Side,
    b: _Side,
    radii: np.ndarray,
    *,
    along_rows: bool,
) -> None:
    """Decide the pairs on a ball's edge by their exact distance; radii are those of `a`'s rows, or `b`'s."""
    if unsure.size == 0:
        return
    i, j = np.divmod(unsure, inside.shape[1])
    exact = _exact(a, i + here.start, b, j + there.start)
    inside[i, j] = exact <= (radii[i + here.start] if along_rows else radii[j + there.start])
