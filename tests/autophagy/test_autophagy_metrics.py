"""Metrics against their definitions as loops, against scipy, and under what must not change them."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, optimize
from scipy.spatial.distance import cdist

from lmlab.autophagy import metrics, reference

rows_of_ids = st.lists(st.lists(st.integers(0, 4), min_size=0, max_size=9), min_size=2, max_size=8)


def points(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d))


# ---------------------------------------------------------------- distances
@pytest.mark.parametrize(("n", "m", "d"), [(30, 40, 1), (50, 20, 3), (400, 300, 8), (6, 5, 9)])
def test_frechet_is_scipys(n, m, d):
    x, y = points(0, n, d) @ np.diag(np.arange(1, d + 1)), points(1, m, d) + 0.3
    s1, s2 = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    root = linalg.sqrtm(s1 + 0j)
    cross = np.trace(linalg.sqrtm(root @ s2 @ root)).real
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross
    assert metrics.frechet(x, y) == pytest.approx(wanted, rel=1e-9 if min(n, m) > d else 1e-5)
    turn = np.linalg.qr(points(2, d, d))[0]
    assert metrics.frechet(x @ turn, y @ turn) == pytest.approx(metrics.frechet(x, y), rel=1e-9)
    assert metrics.frechet(x[::-1], y) == pytest.approx(metrics.frechet(x, y), rel=1e-12)
    assert metrics.frechet(x, x) <= 1e-9 * np.trace(s1)
    assert metrics.frechet_gaussian(x.mean(0), s1, y.mean(0), s2) == pytest.approx(metrics.frechet(x, y))


@pytest.mark.parametrize("n", [1, 7, 30])
def test_w2_in_one_dimension_is_the_best_assignment(n):
    x, y = points(3, n, 1), points(4, n, 1) * 2 + 1
    cost = cdist(x, y, "sqeuclidean")
    assert metrics.w2_squared(x, y) == pytest.approx(
        cost[optimize.linear_sum_assignment(cost)].mean(), rel=1e-9
    )


def test_w2_of_other_sizes_repeats_rows():
    x, y = points(5, 6, 1), points(6, 4, 1)
    assert metrics.w2_squared(x, y) == pytest.approx(
        metrics.w2_squared(np.repeat(x, 2, axis=0), np.repeat(y, 3, axis=0)), rel=1e-12
    )
    assert metrics.w2_squared(x[:, 0], y[:, 0]) == metrics.w2_squared(x, y)
    assert metrics.w2_squared(points(7, 9, 3), points(7, 9, 3)) == 0.0


def test_sliced_w2_of_a_shift_is_its_square_over_d():
    x = points(8, 200, 4)
    shift = np.array([1.0, 0.0, 2.0, 0.0])
    found = metrics.w2_squared(x, x + shift, projections=4000)
    assert found == pytest.approx((shift**2).sum() / 4, rel=0.1)


# ---------------------------------------------------------------- neighbours
@pytest.mark.parametrize(("n", "m", "d", "k"), [(6, 9, 1, 5), (40, 25, 2, 3), (30, 60, 7, 1)])
def test_neighbour_metrics_are_their_loops(n, m, d, k):
    real, fake = points(9, n, d), points(10, m, d) * 0.8 + 0.2
    for ours, theirs in (
        (metrics.precision_recall, reference.precision_recall),
        (metrics.density_coverage, reference.density_coverage),
    ):
        assert ours(real, fake, k=k) == pytest.approx(theirs(real, fake, k=k), abs=1e-12)
        assert ours(np.round(real), np.round(fake), k=k) == pytest.approx(
            theirs(np.round(real), np.round(fake), k=k), abs=1e-12
        )
        turn = np.linalg.qr(points(11, d, d))[0]
        assert ours(real @ turn, fake @ turn, k=k) == ours(real, fake, k=k)
        assert ours(real[::-1], fake[::-1], k=k) == ours(real, fake, k=k)


def test_neighbours_across_blocks_are_those_of_whole_matrices():
    real, fake, k = points(12, 2500, 3), points(13, 2300, 3) + 0.5, 4
    inner, outer = np.sort(cdist(real, real))[:, k], np.sort(cdist(fake, fake))[:, k]
    across = cdist(real, fake)
    inside = across <= inner[:, None]
    assert metrics.precision_recall(real, fake, k=k) == pytest.approx(
        (inside.any(axis=0).mean(), (across <= outer).any(axis=1).mean()), abs=1e-12
    )
    assert metrics.density_coverage(real, fake, k=k) == pytest.approx(
        (inside.sum() / (k * 2300), inside.any(axis=1).mean()), abs=1e-12
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_equal_rows_are_in_closed_balls(value):
    real, fake = np.full((40, 3), value), np.full((30, 3), value)
    assert metrics.precision_recall(real, fake) == (1.0, 1.0)
    assert metrics.density_coverage(real, fake) == (40 / 5, 1.0)


# ---------------------------------------------------------------- text
@settings(max_examples=150, deadline=None)
@given(rows_of_ids, rows_of_ids, st.integers(1, 4))
def test_text_metrics_are_their_loops(real, fake, n):
    def same(a, b):
        return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, abs=1e-12)

    assert same(metrics.ngram_entropy(real, n), reference.ngram_entropy(real, n))
    for most in (None, 1, 3):
        assert same(
            metrics.ngram_coverage(real, fake, n=n, max_count=most),
            reference.ngram_coverage(real, fake, n=n, max_count=most),
        )
    assert metrics.self_bleu(real, n=n) == pytest.approx(reference.self_bleu(real, n=n), abs=1e-12)


def test_text_metrics_of_large_ids_and_long_grams():
    rng = np.random.default_rng(14)
    rows = rng.integers(0, 3, (12, 30)) * 10**12
    for n in (1, 2, 6):
        assert metrics.ngram_entropy(rows, n) == pytest.approx(
            reference.ngram_entropy(rows.tolist(), n), rel=1e-12
        )
        assert metrics.ngram_coverage(rows[:6], rows[6:], n=n) == pytest.approx(
            reference.ngram_coverage(rows[:6].tolist(), rows[6:].tolist(), n=n), rel=1e-12
        )
    assert metrics.self_bleu(rows, n=3) == pytest.approx(reference.self_bleu(rows.tolist(), n=3), rel=1e-12)


def test_text_metrics_at_their_ends():
    same = np.tile(np.arange(20), (5, 1))
    assert metrics.self_bleu(same) == 1.0
    assert metrics.self_bleu(np.arange(40).reshape(2, 20)) == 0.0
    assert metrics.ngram_entropy(np.arange(16).reshape(2, 8)) == pytest.approx(4.0, rel=1e-12)
    assert math.isnan(metrics.ngram_entropy(same, 21))


# ---------------------------------------------------------------- frontier
@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([0.5, 5.0]), st.sampled_from([2, 25]))
def test_frontier_area_is_mauves(v, seed, scale, points_):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(v, 0.5)), rng.dirichlet(np.full(v, 0.5))
    p[rng.random(v) < 0.2] = 0
    p = p / p.sum() if p.sum() else np.eye(v)[0]
    curve = [(1.0, 0.0)]
    for x in np.linspace(1e-6, 1 - 1e-6, points_):
        r = x * p + (1 - x) * q
        kl = [sum(a * math.log(a / c) for a, c in zip(law, r, strict=True) if a > 0) for law in (q, p)]
        curve.append((math.exp(-scale * kl[0]), math.exp(-scale * kl[1])))
    curve.append((0.0, 1.0))
    wanted = sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))
    found = metrics.frontier_area(p, q, scale=scale, points=points_)
    assert found == pytest.approx(wanted, rel=1e-9)
    assert metrics.frontier_area(q, p, scale=scale, points=points_) == pytest.approx(found, rel=1e-9)
    assert metrics.frontier_area(p, p) == pytest.approx(1.0, abs=1e-9)


def test_mauve_tells_laws_apart():
    real = points(15, 400, 5)
    assert metrics.mauve(real, points(16, 400, 5)) > 0.9
    assert metrics.mauve(real, points(16, 400, 5) + 3) < 0.2
    assert metrics.mauve(real, points(16, 400, 5), seed=1) == metrics.mauve(real, points(16, 400, 5), seed=1)
    assert metrics.mauve(real, real) == pytest.approx(1.0, abs=1e-9)
    ids = np.random.default_rng(17).integers(0, 200, (300, 20))
    assert metrics.mauve(ids, np.random.default_rng(18).integers(0, 200, (300, 20)), clusters=10) > 0.8
    assert metrics.mauve(ids, ids // 4, clusters=10) < 0.3
    assert metrics.mauve(np.zeros((20, 2)), np.zeros((20, 2))) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: metrics.precision_recall(points(0, 5, 2), points(0, 9, 2)), "real must be at least 6 rows"),
        (
            lambda: metrics.density_coverage(points(0, 9, 2), points(0, 9, 3)),
            "must have one width, got 2 and 3",
        ),
        (
            lambda: metrics.precision_recall(points(0, 9, 2), points(0, 9, 2), k=0),
            "k must be a whole number >= 1",
        ),
        (lambda: metrics.frechet(points(0, 1, 2), points(0, 9, 2)), "x must be at least 2 rows"),
        (lambda: metrics.w2_squared(points(0, 3, 2), points(0, 3, 2), projections=0), "projections"),
        (
            lambda: metrics.ngram_entropy(points(0, 3, 2)),
            "rows must be integer ids [n t], got float64 (3, 2)",
        ),
        (lambda: metrics.ngram_entropy([[1, -2]]), "rows must hold ids >= 0, got -2"),
        (lambda: metrics.ngram_coverage([[1]], [[2]], n=0), "n must be a whole number >= 1, got 0"),
        (lambda: metrics.self_bleu([[1, 2]]), "rows must be at least 2 rows, got 1"),
        (lambda: metrics.frontier_area([0.5, 0.5], [1.0]), "p and q must have one length, got 2 and 1"),
        (lambda: metrics.frontier_area([0.5, 0.6], [0.5, 0.5]), "p must be probabilities [v] that sum to 1"),
        (lambda: metrics.frontier_area([1.0], [1.0], scale=0), "scale must be a number > 0, got 0"),
        (
            lambda: metrics.mauve(points(0, 9, 2), points(0, 9, 2), clusters=1),
            "clusters must be a whole number >= 2",
        ),
    ],
)
def test_bad_metric_calls_are_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
