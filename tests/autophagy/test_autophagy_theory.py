"""Closed forms against each other and against the exact laws."""

import math
import re

import numpy as np
import pytest
from scipy import special

from lmlab.autophagy import (
    Accumulate,
    Augmentation,
    Contamination,
    Fresh,
    Memory,
    RealOnly,
    Subsample,
    Synthetic,
    Weighted,
    laws,
    theory,
)

LOOPS = [
    Synthetic(7, 12),
    Augmentation(6, 9),
    Fresh(8, 5),
    Accumulate(6),
    Contamination(11, 0.7),
    Memory(Synthetic(9), 3),
    Memory(Augmentation(6, 9), 2),
    Memory(Fresh(6, 10), 3),
    Memory(Accumulate(7), 2),
    Weighted(Augmentation(6, 9), 0.7),
    Weighted(Fresh(6, 9), 0.2),
    Weighted(Accumulate(6), 0.6),
    Weighted(Memory(Fresh(6, 9), 2), 0.5),
    RealOnly(Accumulate(5)),
]


def test_polygamma_against_scipy():
    for x in (0.5, 1.0, 1.5, 3.0, 9.5, 10.0, 49.5, 5000.0):
        assert theory.digamma(x) == pytest.approx(special.digamma(x), rel=1e-14, abs=1e-15)
        assert theory.trigamma(x) == pytest.approx(special.polygamma(1, x), rel=1e-13)


@pytest.mark.parametrize("loop", LOOPS, ids=repr)
def test_moments_against_the_laws(loop):
    """|z| < 4 for E m² and E Σ at every generation, biased and not, n <= d too."""
    for d, trials in ((1, 20_000), (2, 10_000), (5, 5_000), (30, 300)):
        for bias in (1.0, 0.7):
            exact = theory.moments(loop, 5, bias=bias, ddof=d % 2)
            drawn = laws.gaussian(loop, generations=5, trials=trials, d=d, bias=bias, ddof=d % 2, seed=d)
            for values, wanted in (
                ((drawn.mean**2).mean(axis=-1), exact.mean_square),
                (np.einsum("grii->gr", drawn.cov) / d, exact.variance),
            ):
                z = (values.mean(axis=1) - wanted) / (values.std(axis=1) / math.sqrt(trials))
                assert np.abs(z).max() < 4


def test_moments_of_the_synthetic_loop_are_powers_of_the_bias():
    for bias in (1.0, 0.9, 0.0):
        exact = theory.moments(Synthetic(12), 30, bias=bias)
        assert exact.variance == pytest.approx(bias ** np.arange(30), rel=1e-12)


def test_moments_of_replaced_and_kept_data_with_ddof_0():
    n, t = 9, np.arange(1, 41)
    replaced = theory.moments(Synthetic(n), 40, ddof=0)
    assert replaced.variance == pytest.approx((1 - 1 / n) ** t, rel=1e-12)
    kept = theory.moments(Accumulate(n), 40, ddof=0)
    assert kept.variance == pytest.approx(np.cumprod(1 - 1 / (n * t**2)), rel=1e-12)


def test_plateau_is_the_fixed_point():
    for n_r, n_s in ((50, 100), (100, 30), (7, 50)):
        for bias in (1.0, 0.8, 0.3):
            exact = theory.moments(Fresh(n_r, n_s), 400, bias=bias)
            assert theory.plateau(n_r, n_s, bias=bias) == pytest.approx(
                (exact.mean_square[-1], exact.variance[-1]), rel=1e-10
            )


def test_moments_by_hand_at_the_second_generation():
    """Augmentation(n, m) at t = 2, every expectation written out."""
    n, m, lam = 6, 9, 0.8
    rows = n + m
    mean = n / rows, m / rows
    c = np.array([[1 / n, 1 / n], [1 / n, 1 / n + lam / m]])  # E m_j m_k of the two sets, v_1 = 1
    square = np.array(mean) @ c @ np.array(mean)
    variance = ((n - 1) + n * c[0, 0] + (m - 1) * lam + m * c[1, 1] - rows * square) / (rows - 1)
    exact = theory.moments(Augmentation(n, m), 2, bias=lam)
    assert exact.mean_square[1] == pytest.approx(square, rel=1e-13)
    assert exact.variance[1] == pytest.approx(variance, rel=1e-13)


def test_weighting_by_the_real_share_changes_nothing():
    for loop in (Augmentation(6, 9), Fresh(6, 9)):
        plain = laws.gaussian(loop, generations=6, trials=50, d=2, seed=1)
        weighted = laws.gaussian(Weighted(loop, 6 / 15), generations=6, trials=50, d=2, seed=1)
        assert weighted.cov == pytest.approx(plain.cov, rel=1e-12, abs=1e-12)
        assert weighted.mean == pytest.approx(plain.mean, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("n", "d", "bias"), [(5, 1, 1.0), (20, 1, 0.9), (8, 3, 1.0), (4, 3, 0.8)])
def test_log_variance_against_the_laws(n, d, bias):
    trials = 200_000 if d == 1 else 40_000
    paths = laws.gaussian(Synthetic(n), generations=30, trials=trials, d=d, bias=bias, record=[30], seed=2)
    mean, variance = theory.log_variance(n, 30, bias=bias, d=d)
    values = paths.log_det[0]
    assert abs(values.mean() - mean) < 4 * math.sqrt(variance / trials)
    fourth = ((values - mean) ** 4).mean()
    assert abs(values.var() - variance) < 4 * math.sqrt((fourth - variance**2) / trials)


def test_log_det_stays_exact_where_the_covariance_is_lost():
    """A narrow ellipse: the factor knows its determinant, the covariance matrix doesn't."""
    paths = laws.gaussian(Synthetic(4), generations=200, trials=400, d=3, record=[200], seed=5)
    mean, variance = theory.log_variance(4, 200, d=3)
    assert abs(paths.log_det.mean() - mean) < 4 * math.sqrt(variance / 400)


def test_base_and_effective_rows():
    for n in (1.5, 2, 3, 30, 80, 81, 82, 1000, 10**7):
        x = (n - 1) / 2
        lost = (
            1 - special.poch(x, 0.5) / math.sqrt(x)
            if n < 1000
            else 1 / (8 * x) - 1 / (128 * x * x) - 5 / (1024 * x**3)
        )
        assert theory.base_w2(n) == pytest.approx(1 / n + 2 * lost, rel=1e-9)
        assert theory.effective_n(theory.base_w2(n)) == pytest.approx(n, rel=1e-9)
        assert theory.effective_n(theory.base_w2(n, 7), 7) == pytest.approx(n, rel=1e-12)
    drawn = laws.gaussian(Synthetic(9), generations=1, trials=100_000, seed=3).w2()[0]
    assert abs(drawn.mean() - theory.base_w2(9)) < 4 * drawn.std() / math.sqrt(100_000)
    drawn = laws.gaussian(Synthetic(4000), generations=1, trials=200, d=10, seed=3).w2()[0]
    assert drawn.mean() == pytest.approx(theory.base_w2(4000, 10), rel=0.03)


def test_accumulated_data_keeps_its_variance():
    for n in (1, 2, 10, 100):
        product = np.prod(1 - 1 / (n * np.arange(1, 200_000.0) ** 2))
        assert theory.accumulate_limit(n) == pytest.approx(product, rel=1e-4, abs=1e-4)


def test_the_golden_ratio():
    for k in (0.5, 1.0, 3.0):
        w = theory.golden_weight(k)
        n_s = 3000
        n_r = round(k * n_s)
        best = theory.weighted_excess(w, k)
        exact = theory.moments(Weighted(Fresh(n_r, n_s), w), 60).mean_square[-1] * n_r
        assert exact == pytest.approx(best, rel=0.01)
        assert best < theory.weighted_excess(w * 1.05, k) and best < theory.weighted_excess(w * 0.95, k)
        for other in (0.2, 0.9):
            exact = theory.moments(Weighted(Fresh(n_r, n_s), other), 60).mean_square[-1] * n_r
            assert exact == pytest.approx(theory.weighted_excess(other, k), rel=0.01)
    assert theory.golden_weight(1) == pytest.approx((math.sqrt(5) - 1) / 2, rel=1e-12)


def test_admissible_rows_at_their_end():
    assert theory.admissible_n_synth(0.5) == pytest.approx(32.0)
    assert theory.admissible_n_synth(1.0) == math.inf


def test_curated_is_the_double_sum_and_its_limit():
    rng = np.random.default_rng(0)
    p, r = rng.dirichlet(np.ones(5)), 3 * rng.standard_normal(5)
    w = np.exp(r)
    double = [sum(2 * p[x] * p[y] * w[x] / (w[x] + w[y]) for y in range(5)) for x in range(5)]
    assert theory.curated(p, r, 1, k=2) == pytest.approx(double, abs=1e-14)
    assert theory.curated(p, r, 4, k=1) == pytest.approx(p, abs=1e-14)
    assert theory.curated(p, r, 3, k=10**4) == pytest.approx(theory.curated(p, r, 3), abs=1e-5)
    assert theory.curated(p, r, 0) == pytest.approx(p, abs=1e-15)
    two = theory.curated([0.5, 0.5, 0], [0, 800, 0], 2)
    assert two == pytest.approx([0, 1, 0], abs=1e-15)
    assert theory.curated([0.5, 0.5, 0], [0, 300, 0], 1, k=3) == pytest.approx([0.125, 0.875, 0], abs=1e-12)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: theory.base_w2(1), "n must be a number > 1, got 1"),
        (lambda: theory.effective_n(3.0), "w2 must be in (0, 3) for d=1, got 3.0"),
        (lambda: theory.effective_n(0.0, 2), "w2 must be in (0, 3.5) for d=2, got 0.0"),
        (lambda: theory.admissible_n_synth(-0.1), "bias must be a number in [0, 1]"),
        (lambda: theory.golden_weight(0), "k = n_real/n_synth must be a number > 0, got 0"),
        (lambda: theory.weighted_excess(1.0, 1), "w must be a number in (0, 1), got 1.0"),
        (lambda: theory.heterozygosity([0.5, 0.4], 3, 1), "p0 must be probabilities [v] that sum to 1"),
        (lambda: theory.curated([1.0], [1.0, 2.0], 1), "reward must be finite numbers [1]"),
        (lambda: theory.curated([1.0], [1.0], 1, k=0), "k must be a whole number >= 1, got 0"),
        (lambda: theory.plateau(0, 5), "n_real must be a whole number >= 1, got 0"),
    ],
)
def test_bad_theory_calls_are_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


@pytest.mark.bad_input
def test_a_subsample_has_no_exact_law():
    with pytest.raises(ValueError, match="no exact law; use run"):
        theory.moments(Subsample(5), 3)
    with pytest.raises(ValueError, match="no exact law; use run"):
        laws.gaussian(Subsample(5), generations=3, trials=2)
    with pytest.raises(ValueError, match="n must be > d, got n=3, d=3"):
        theory.log_variance(3, 5, d=3)
