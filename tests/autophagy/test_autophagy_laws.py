"""The exact laws against rows that are really drawn, both engines against each other, and `run` with both."""

import re

import numpy as np
import pytest
from scipy import stats

from lmlab.autophagy import (
    Accumulate,
    Augmentation,
    Contamination,
    Fresh,
    Gaussian,
    Memory,
    RealOnly,
    Subsample,
    Synthetic,
    Weighted,
    laws,
    reference,
    run,
    theory,
)

LOOPS = [
    Synthetic(5),
    Synthetic(2, 4),
    Augmentation(4, 7),
    Fresh(6, 5),
    Fresh(6, 1),
    Accumulate(4),
    Contamination(9, 0.6),
    Memory(Synthetic(7), 3),
    Memory(Accumulate(5), 2),
    Weighted(Fresh(5, 8), 0.7),
    Weighted(Memory(Accumulate(4, 6), 2), 0.3),
    RealOnly(Synthetic(5)),
]
TRIALS = 20_000


def same_law(a, b):
    assert stats.ks_2samp(a, b).pvalue > 1e-6


@pytest.mark.parametrize("loop", LOOPS, ids=repr)
@pytest.mark.parametrize("engine", ["native", "numpy"])
def test_one_dimension_has_the_law_of_rows(loop, engine):
    drawn = laws.gaussian(loop, generations=4, trials=TRIALS, bias=0.9, seed=1, record=[2, 4], engine=engine)
    assert drawn.engine == engine
    means, covs = reference.gaussian(loop, generations=4, trials=TRIALS, bias=0.9, seed=2)
    for row, t in enumerate(drawn.generations):
        same_law(drawn.mean[row, :, 0], means[t - 1, :, 0])
        same_law(drawn.log_det[row], np.log(covs[t - 1, :, 0, 0]))
        same_law(drawn.w2()[row], means[t - 1, :, 0] ** 2 + (np.sqrt(covs[t - 1, :, 0, 0]) - 1) ** 2)


@pytest.mark.parametrize(
    "loop", [Synthetic(6), Fresh(5, 8), Accumulate(5), Weighted(Augmentation(4, 5), 0.6)], ids=repr
)
@pytest.mark.parametrize("d", [2, 3])
def test_many_dimensions_have_the_law_of_rows(loop, d):
    drawn = laws.gaussian(loop, generations=3, trials=TRIALS, d=d, bias=0.8, ddof=0, seed=3, record=[3])
    means, covs = reference.gaussian(loop, generations=3, trials=TRIALS, d=d, bias=0.8, ddof=0, seed=4)
    same_law(drawn.log_det[0], np.linalg.slogdet(covs[2])[1])
    same_law(np.trace(drawn.cov[0], axis1=1, axis2=2), np.trace(covs[2], axis1=1, axis2=2))
    same_law((drawn.mean[0] ** 2).sum(axis=1), (means[2] ** 2).sum(axis=1))
    roots = np.sqrt(np.linalg.eigvalsh(covs[2]))
    same_law(drawn.w2()[0], (means[2] ** 2).sum(axis=1) + ((roots - 1) ** 2).sum(axis=1))


@pytest.mark.parametrize("loop", [Synthetic(3), Accumulate(2), Fresh(2, 2)], ids=repr)
def test_fewer_rows_than_dimensions(loop):
    drawn = laws.gaussian(loop, generations=3, trials=4000, d=4, seed=5, record=[3])
    means, covs = reference.gaussian(loop, generations=3, trials=4000, d=4, seed=6)
    same_law(np.trace(drawn.cov[0], axis1=1, axis2=2), np.trace(covs[2], axis1=1, axis2=2))
    same_law((drawn.mean[0] ** 2).sum(axis=1), (means[2] ** 2).sum(axis=1))
    if isinstance(loop, Synthetic):
        assert (drawn.log_det == -np.inf).all()


@pytest.mark.parametrize(
    "loop", [Fresh(5, 6), Memory(Accumulate(4), 2), Weighted(Augmentation(5, 6), 0.4)], ids=repr
)
@pytest.mark.parametrize("d", [1, 3])
def test_a_run_with_the_gaussian_has_the_law(loop, d):
    law = Gaussian(mean=np.zeros(d), cov=np.eye(d))
    history = run(
        loop, Gaussian(), law, generations=3, seeds=400, bias=0.9,
        metrics={"square": lambda s: (s.model.mean**2).sum(), "trace": lambda s: np.trace(s.model.cov)},
        held_out=np.zeros((2, d)), n_eval=1,
    )  # fmt: skip
    drawn = laws.gaussian(loop, generations=3, trials=TRIALS, d=d, bias=0.9, seed=7)
    for t in range(3):
        same_law(history["square"][:, t], (drawn.mean[t] ** 2).sum(axis=1))
        same_law(history["trace"][:, t], np.trace(drawn.cov[t], axis1=1, axis2=2))


@pytest.mark.parametrize("n", [2, 3, 4, 10, 1000, 10**6])
def test_the_kernels_variances_are_chi_squares(n):
    """Fitted variances of one generation: χ² of n − 1 degrees of freedom, far into both tails."""
    drawn = laws.gaussian(Synthetic(n), generations=1, trials=200_000, seed=8)
    var = drawn.cov[0, :, 0, 0] * (n - 1)
    assert stats.kstest(var, stats.chi2(n - 1).cdf).pvalue > 1e-6
    mean = drawn.mean[0, :, 0] * np.sqrt(n)
    assert stats.kstest(mean, stats.norm.cdf).pvalue > 1e-6
    tail = np.abs(mean) > 3.7  # beyond the ziggurat's base strip
    assert stats.binomtest(int(tail.sum()), 200_000, 2 * stats.norm.sf(3.7)).pvalue > 1e-6
    assert abs(np.corrcoef(mean, var)[0, 1]) < 4 / np.sqrt(200_000)
    for lag in (1, 8, 9):
        assert abs(np.corrcoef(mean[:-lag], mean[lag:])[0, 1]) < 4 / np.sqrt(200_000)


@pytest.mark.parametrize("engine", ["native", "numpy"])
def test_threads_and_record_change_nothing(engine):
    call = {"generations": 4, "trials": 140_001, "seed": 9, "engine": engine}
    one = laws.gaussian(Fresh(5, 6), threads=1, **call)
    two = laws.gaussian(Fresh(5, 6), threads=2, **call)
    assert (one.cov == two.cov).all() and (one.mean == two.mean).all()
    last = laws.gaussian(Fresh(5, 6), record=[4], **call)
    assert (last.mean[0] == one.mean[3]).all() and last.generations.tolist() == [4]
    few = laws.gaussian(Fresh(5, 6), **{**call, "trials": 70_001})
    assert (few.mean[:, :65_536] == one.mean[:, :65_536]).all()


def test_a_collapsed_variance_goes_on():
    for engine in ("native", "numpy"):
        drawn = laws.gaussian(Synthetic(3), generations=4, trials=100, bias=0.0, engine=engine)
        assert (drawn.cov[1:] == 0).all() and (drawn.log_det[1:] == -np.inf).all()


# ---------------------------------------------------------------- plateau
def test_the_plateaus_map_is_the_plateau_of_the_law():
    found = laws.phase_map([20, 60], [0, 15, 100], bias=0.8, trials=100_000)
    for i, n_r in enumerate((20, 60)):
        assert found[i, 0] == pytest.approx(1.0, rel=1e-9)
        for j, n_s in enumerate((15, 100), start=1):
            drawn = laws.gaussian(Fresh(n_r, n_s), generations=40, trials=200_000, bias=0.8, record=[40])
            assert found[i, j] == pytest.approx(theory.effective_n(drawn.w2().mean()) / n_r, rel=0.015)


def test_the_plateaus_map_in_many_dimensions():
    found = laws.phase_map([30], [20], bias=0.9, d=4, trials=20_000)
    drawn = laws.gaussian(Fresh(30, 20), generations=30, trials=20_000, d=4, bias=0.9, record=[30])
    assert found[0, 0] == pytest.approx(theory.effective_n(drawn.w2().mean(), 4) / 30, rel=0.02)


@pytest.mark.parametrize("bias", [0.5, 0.8])
def test_admissible_rows_are_where_the_map_crosses_one(bias):
    limit = theory.admissible_n_synth(bias)
    n_s = [round(limit * 0.8), round(limit * 1.2)]
    helps, harms = laws.phase_map([round(40 * limit)], n_s, bias=bias, trials=2_000_000)[0]
    assert helps > 1 > harms


def test_unbiased_synthetic_rows_are_worth_at_most_as_many_again():
    assert laws.phase_map([100], [1000, 10_000], bias=1.0)[0] == pytest.approx([1.90, 1.97], abs=0.03)


# ---------------------------------------------------------------- categorical
@pytest.mark.parametrize(
    "loop",
    [
        Synthetic(6),
        Fresh(5, 4),
        Accumulate(4),
        Subsample(5, 7),
        Memory(Synthetic(6), 2),
        Weighted(Fresh(4, 5), 0.7),
    ],
    ids=repr,
)
def test_categorical_has_the_law_of_rows(loop):
    p0 = [0.5, 0.3, 0.15, 0.05]
    drawn = laws.categorical(loop, p0, generations=3, trials=20_000, seed=1)
    rows = reference.categorical(loop, p0, generations=3, trials=2_000, seed=2)
    assert drawn.sum(axis=2) == pytest.approx(1.0, abs=1e-12)
    drawn, rows = np.round(drawn, 9), np.round(rows, 9)  # sums of weights in another order
    for t in range(3):
        for x in range(4):
            same_law(drawn[t, :, x], rows[t, :, x])
        same_law((drawn[t] ** 2).sum(axis=1), (rows[t] ** 2).sum(axis=1))


def test_heterozygosity():
    p0 = [0.4, 0.3, 0.2, 0.1]
    drawn = laws.categorical(Synthetic(20), p0, generations=30, trials=20_000, seed=3, record=[1, 10, 30])
    for row, t in enumerate((1, 10, 30)):
        values = 1 - (drawn[row] ** 2).sum(axis=1)
        wanted = theory.heterozygosity(p0, 20, t)
        assert abs(values.mean() - wanted) < 4 * values.std() / np.sqrt(20_000)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: laws.gaussian(Fresh(5, 5), generations=0, trials=1),
            "generations must be a whole number >= 1, got 0",
        ),
        (
            lambda: laws.gaussian(Fresh(5, 5), generations=1, trials=0),
            "trials must be a whole number >= 1, got 0",
        ),
        (
            lambda: laws.gaussian(Fresh(5, 5), generations=1, trials=1, bias=1.1),
            "bias must be a number in [0, 1]",
        ),
        (
            lambda: laws.gaussian(Fresh(5, 5), generations=1, trials=1, bias=float("nan")),
            "bias must be a number",
        ),
        (
            lambda: laws.gaussian(Fresh(5, 5), generations=2, trials=1, record=[3]),
            "record must name generations in 1 … 2",
        ),
        (lambda: laws.gaussian(Synthetic(1), generations=2, trials=1), "a Gaussian needs n >= 2 rows"),
        (lambda: laws.gaussian(Fresh(5, 5), generations=1, trials=1, ddof=2), "ddof must be 0 or 1, got 2"),
        (
            lambda: laws.gaussian(Fresh(5, 5), generations=1, trials=1, engine="gpu"),
            "engine must be 'native' or 'numpy'",
        ),
        (
            lambda: laws.categorical(Fresh(5, 5), [0.5, 0.6], generations=1, trials=1),
            "p0 must be probabilities",
        ),
        (lambda: laws.phase_map([1], [5], bias=1.0), "n_real must be a whole number >= 2, got 1"),
    ],
)
def test_bad_laws_are_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
