"""Closed forms against each other and against the exact laws."""

import math

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
    """|z| < 5 for E m² and E Σ at every generation, biased and not, n <= d too."""
    for d, trials in ((1, 20_000), (2, 10_000), (5, 5_000), (30, 300)):
        for bias in (1.0, 0.7):
            exact = theory.moments(loop, 5, bias=bias, ddof=d % 2)
            drawn = laws.gaussian(loop, generations=5, trials=trials, d=d, bias=bias, ddof=d % 2, seed=d)
            for values, wanted in (
                ((drawn.mean**2).mean(axis=-1), exact.mean_square),
                (np.einsum("grii->gr", drawn.cov) / d, exact.variance),
            ):
                z = (values.mean(axis=1) - wanted) / (values.std(axis=1) / math.sqrt(trials))
                assert np.abs(z).max() < 5


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
    assert abs(values.mean() - mean) < 5 * math.sqrt(variance / trials)
    fourth = ((values - mean) ** 4).mean()
    assert abs(values.var() - variance) < 5 * math.sqrt((fourth - variance**2) / trials)


def test_log_det_stays_exact_where_the_covariance_is_lost():
    """A narrow ellipse: the factor knows its determinant, the covariance matrix doesn't."""
    paths = laws.gaussian(Synthetic(4), generations=200, trials=400, d=3, record=[200], seed=5)
    mean, variance = theory.log_variance(4, 200, d=3)
    assert abs(paths.log_det.mean() - mean) < 5 * math.sqrt(variance / 400)


@pytest.mark.bad_input
def test_a_subsample_has_no_exact_law():
    with pytest.raises(ValueError, match="no exact law; use run"):
        theory.moments(Subsample(5), 3)
    with pytest.raises(ValueError, match="no exact law; use run"):
        laws.gaussian(Subsample(5), generations=3, trials=2)
    with pytest.raises(ValueError, match="n must be > d, got n=3, d=3"):
        theory.log_variance(3, 5, d=3)
