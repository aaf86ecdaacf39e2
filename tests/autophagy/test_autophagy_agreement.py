"""Each closed form of the theory against simulation: the mean over trials within four standard errors."""

import math

import numpy as np
import pytest

from lmlab.autophagy import (
    Accumulate,
    BestOf,
    Fresh,
    Gaussian,
    Memory,
    Synthetic,
    Weighted,
    laws,
    run,
    theory,
)


def z(values, wanted):
    """How many standard errors the mean of independent `values` is away from `wanted`."""
    return (values.mean() - wanted) / (values.std(ddof=1) / math.sqrt(values.size))


@pytest.mark.parametrize("engine", ["native", "numpy"])
@pytest.mark.parametrize("bias", [1.0, 0.8, 0.3])
def test_variance_of_the_synthetic_loop(bias, engine):
    """E Σ_t = λ^{t−1}, at generations where rare paths do not rule it (t < n)."""
    paths = laws.gaussian(Synthetic(50), generations=10, trials=200_000, bias=bias, seed=11, engine=engine)
    for t in range(10):
        assert abs(z(paths.cov[t, :, 0, 0], bias**t)) < 4


@pytest.mark.parametrize("engine", ["native", "numpy"])
@pytest.mark.parametrize(("n", "d"), [(12, 1), (200, 1), (20, 3)])
def test_mean_and_variance_of_log_det(n, d, engine):
    trials = 200_000 if d == 1 else 20_000
    paths = laws.gaussian(Synthetic(n), generations=25, trials=trials, d=d, seed=12, record=[1, 5, 25],
                          engine=engine if d == 1 else "native")  # fmt: skip
    for row, t in enumerate((1, 5, 25)):
        mean, variance = theory.log_variance(n, t, d=d)
        values = paths.log_det[row]
        assert abs(z(values, mean)) < 4
        assert abs(z((values - mean) ** 2, variance)) < 4


def test_the_drift_is_one_row_a_generation():
    """d = 1, λ = 1: E log Σ_t falls by about 1/(n − 1) a generation."""
    for n in (50, 500):
        assert theory.log_variance(n, 1)[0] == pytest.approx(-1 / (n - 1), rel=1 / n)


@pytest.mark.parametrize("n", [3, 10, 100])
def test_kept_and_replaced_variance_with_ddof_0(n):
    """Accumulate: Π (1 − 1/(n i²)) → sin(π/√n)/(π/√n); replaced: (1 − 1/n)^t."""
    kept = laws.gaussian(Accumulate(n), generations=120, trials=50_000, ddof=0, seed=13, record=[1, 4, 120])
    for row, t in enumerate((1, 4, 120)):
        wanted = np.prod(1 - 1 / (n * np.arange(1.0, t + 1) ** 2))
        assert abs(z(kept.cov[row, :, 0, 0], wanted)) < 4
    assert wanted == pytest.approx(theory.accumulate_limit(n), rel=0.01)
    replaced = laws.gaussian(Synthetic(n), generations=3, trials=100_000, ddof=0, seed=13)
    for t in range(3):
        assert abs(z(replaced.cov[t, :, 0, 0], (1 - 1 / n) ** (t + 1))) < 4


@pytest.mark.parametrize(("n_r", "n_s"), [(10, 10), (100, 20), (20, 200)])
@pytest.mark.parametrize("bias", [1.0, 0.7])
def test_plateau_of_the_fresh_loop(n_r, n_s, bias):
    a, v = theory.plateau(n_r, n_s, bias=bias)
    last = laws.gaussian(Fresh(n_r, n_s), generations=120, trials=40_000, bias=bias, seed=14, record=[120])
    assert abs(z(last.mean[0, :, 0] ** 2, a)) < 4
    assert abs(z(last.cov[0, :, 0, 0], v)) < 4


@pytest.mark.parametrize("bias", [1.0, 0.5, 0.9])
def test_plateau_to_first_order(bias):
    n_r, n_s = 20_000, 5_000
    a, v = theory.plateau(n_r, n_s, bias=bias)
    first = n_r / (n_r + (1 - bias) * n_s)
    assert v == pytest.approx(first, rel=1e-3)
    assert a == pytest.approx((n_r + bias * n_s * first) / (n_r * (n_r + 2 * n_s)), rel=1e-3)


@pytest.mark.parametrize(("n", "d"), [(2, 1), (5, 1), (1000, 1)])
def test_distance_of_a_fit_to_the_real_law(n, d):
    first = laws.gaussian(Synthetic(n), generations=1, trials=200_000, d=d, seed=15).w2()[0]
    assert abs(z(first, theory.base_w2(n, d))) < 4
    assert theory.effective_n(float(first.mean()), d) == pytest.approx(n, rel=0.03)


def test_distance_in_many_dimensions_to_first_order():
    """d/n + d(d + 1)/(4n); the next order is about d/n of it."""
    first = laws.gaussian(Synthetic(4000), generations=1, trials=400, d=20, seed=16).w2()[0]
    assert first.mean() == pytest.approx(theory.base_w2(4000, 20), rel=0.01)


@pytest.mark.parametrize("k", [0.5, 1.0, 4.0])
def test_the_best_weight_of_real_rows(k):
    """n_r E m² at the golden weight, and that it is less than at other weights, by paired paths."""
    n_s = 2000
    n_r, best = round(k * n_s), theory.golden_weight(k)

    def squares(w):
        last = laws.gaussian(
            Weighted(Fresh(n_r, n_s), w), generations=40, trials=100_000, seed=17, record=[40]
        )
        return n_r * last.mean[0, :, 0] ** 2

    exact = theory.moments(Weighted(Fresh(n_r, n_s), best), 40).mean_square[-1] * n_r
    assert abs(z(squares(best), exact)) < 4
    assert exact == pytest.approx(theory.weighted_excess(best, k), rel=0.01)
    assert squares(best).mean() < min(squares(best * 0.6).mean(), squares(0.5 + best / 2).mean())


@pytest.mark.parametrize("loop", [Fresh(30, 60), Memory(Fresh(30, 60), 3), Accumulate(20)], ids=repr)
def test_a_run_has_the_exact_moments(loop):
    """Rows really drawn by the harness, against the recursion."""
    history = run(
        loop, Gaussian(), Gaussian(mean=[0.0], cov=[[1.0]]), generations=5, seeds=range(1000, 1400), bias=0.8,
        metrics={"square": lambda s: s.model.mean[0] ** 2, "variance": lambda s: s.model.cov[0, 0]},
        held_out=np.zeros((2, 1)), n_eval=1,
    )  # fmt: skip
    exact = theory.moments(loop, 5, bias=0.8)
    for t in range(5):
        assert abs(z(history["square"][:, t], exact.mean_square[t])) < 4
        assert abs(z(history["variance"][:, t], exact.variance[t])) < 4


def test_heterozygosity_of_a_categorical_law():
    p0 = np.array([0.6, 0.2, 0.1, 0.06, 0.04])
    for n in (4, 50):
        drawn = laws.categorical(Synthetic(n), p0, generations=20, trials=20_000, seed=18, record=[1, 5, 20])
        for row, t in enumerate((1, 5, 20)):
            assert abs(z(1 - (drawn[row] ** 2).sum(axis=1), theory.heterozygosity(p0, n, t))) < 4


@pytest.mark.parametrize("k", [2, 4])
def test_curation_of_a_categorical_law(k):
    """One step of choosing the best of k by Bradley and Terry, drawn, against its integral."""
    p0, reward = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0])
    rng = np.random.default_rng(19)
    chosen = BestOf(k, lambda rows: reward[rows])(lambda n: rng.choice(3, n, p=p0), 40_000, rng)
    wanted = theory.curated(p0, reward, 1, k=k)
    for x in range(3):
        assert abs(z((chosen == x).astype(float), wanted[x])) < 4
