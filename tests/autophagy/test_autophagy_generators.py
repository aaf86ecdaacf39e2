"""Every generator: its law, its likelihood, its bias, its state, and what it refuses."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from lmlab.autophagy import KDE, DecoderLM, Diffusion, Gaussian, GaussianMixture, NGram, SelfGuided
from lmlab.autophagy.generators.mixture import FittedMixture
from lmlab.model import DecoderConfig
from lmlab.train import TrainConfig


def rng(seed=0):
    return np.random.default_rng(seed)


TINY = DecoderConfig(vocab_size=9, d_model=16, n_layers=1, n_heads=2, max_length=16)
BRIEF = TrainConfig(steps=3, batch_size=4, length=8)
GENERATORS = {
    "gaussian": (Gaussian(), rng(1).standard_normal((30, 3)).astype(np.float32)),
    "kde": (KDE(), rng(2).standard_normal((30, 2))),
    "mixture": (GaussianMixture(2), np.concatenate([rng(3).normal(-5, 1, (30, 2)), rng(4).normal(5, 1, (30, 2))])),
    "ngram": (NGram(6, order=3), rng(5).integers(0, 6, (20, 7)).astype(np.uint8)),
    "decoder": (DecoderLM(TINY, BRIEF), rng(6).integers(0, 8, (12, 6))),
    "diffusion": (
        Diffusion(2, classes=3, timesteps=5, hidden=8, steps=3),
        np.column_stack([rng(7).standard_normal((30, 2)), np.arange(30) % 3]),
    ),
    "guided": (SelfGuided(Gaussian(), 0.05, 200), rng(8).standard_normal((100, 2))),
    "guided ngram": (SelfGuided(NGram(5, order=2), 0.5, 30), rng(9).integers(0, 5, (20, 6))),
}  # fmt: skip


@pytest.mark.parametrize("name", GENERATORS)
def test_fit_sample_and_state_are_exact(name):
    generator, data = GENERATORS[name]
    before = repr(generator)
    weights = np.linspace(0.5, 1.5, data.shape[0])
    for u in (None, weights):
        model, again = generator.fit(data, u, rng(1)), generator.fit(data, u, rng(1))
        state = model.state()
        assert all(isinstance(a, np.ndarray) and a.dtype.kind != "O" for a in state.values())
        assert all((state[key] == value).all() for key, value in again.state().items())
        loaded = generator.load({key: value.copy() for key, value in state.items()})
        for bias in (1.0, 0.5):
            rows = model.sample(11, bias, rng(2))
            assert rows.shape == (11, *data.shape[1:]) and rows.dtype == data.dtype
            assert (rows == loaded.sample(11, bias, rng(2))).all()
            assert (rows == model.sample(11, bias, rng(2))).all()
        if hasattr(generator, "log_prob"):
            scores = model.log_prob(data)
            assert scores.shape == (data.shape[0],)
            assert (scores == loaded.log_prob(data)).all()
    assert repr(generator) == before


@pytest.mark.bad_input
@pytest.mark.parametrize("name", GENERATORS)
def test_a_template_is_not_a_model(name):
    generator, data = GENERATORS[name]
    with pytest.raises(ValueError, match=r"not fitted; call fit"):
        generator.sample(3, 1.0, rng())
    with pytest.raises(ValueError, match=r"not fitted; call fit"):
        generator.state()
    if name != "guided":
        with pytest.raises(ValueError, match=r"data must be|ids must be"):
            generator.fit(data[0], None, rng())


# ---------------------------------------------------------------- Gaussian
def test_gaussian_fit_is_the_weighted_formula():
    x, u = rng().standard_normal((12, 3)), rng(1).random(12)
    for weights in (u, None):
        for ddof in (0, 1):
            model = Gaussian(ddof=ddof).fit(x, weights, rng())
            w = np.ones(12) if weights is None else weights
            v1, v2 = w.sum(), (w**2).sum()
            mean = (w[:, None] * x).sum(0) / v1
            scatter = sum(a * np.outer(b - mean, b - mean) for a, b in zip(w, x, strict=True))
            assert model.mean == pytest.approx(mean, rel=1e-12)
            assert model.cov == pytest.approx(scatter / (v1 - v2 / v1 if ddof else v1), rel=1e-12)


def test_gaussian_density_and_its_support():
    mean, cov = np.array([1.0, -1.0]), np.array([[2.0, 0.5], [0.5, 1.0]])
    x = rng().standard_normal((9, 2))
    law = Gaussian(mean=mean, cov=cov)
    assert law.log_prob(x) == pytest.approx(stats.multivariate_normal(mean, cov).logpdf(x), rel=1e-12)
    flat = Gaussian().fit(rng(1).standard_normal((3, 5)), None, rng())
    inside = flat.sample(4, 1.0, rng(2))
    assert np.isfinite(flat.log_prob(inside)).all()
    assert (flat.log_prob(inside + rng(3).standard_normal((4, 5))) == -np.inf).all()
    wanted = stats.multivariate_normal(flat.mean, flat.cov, allow_singular=True).logpdf(inside)
    assert flat.log_prob(inside) == pytest.approx(wanted, rel=1e-6)
    point = Gaussian(mean=[2.0], cov=[[0.0]])
    assert (point.sample(3, 1.0, rng()) == 2.0).all()
    assert point.log_prob(np.array([[2.0], [2.1]])).tolist() == [0.0, -np.inf]


def test_gaussian_bias_scales_the_covariance():
    law = Gaussian(mean=[1.0], cov=[[4.0]])
    rows = law.sample(50_000, 0.25, rng())[:, 0]
    assert stats.kstest(rows, stats.norm(1, 1).cdf).pvalue > 1e-6
    assert (law.sample(5, 0.0, rng()) == 1.0).all()


# ---------------------------------------------------------------- KDE
def test_kde_is_its_sum_of_kernels():
    data, weights = rng().standard_normal((15, 2)), rng(1).random(15)
    model = KDE(bandwidth=0.7).fit(data, weights, rng())
    x = rng(2).standard_normal((6, 2))
    kernels = np.array([stats.multivariate_normal(row, 0.49 * np.eye(2)).pdf(x) for row in data])
    assert model.log_prob(x) == pytest.approx(np.log(weights / weights.sum() @ kernels), rel=1e-12)
    scott = KDE().fit(data, None, rng())
    assert scott.h == pytest.approx(np.sqrt(data.var(axis=0, ddof=1).mean()) * 15 ** (-1 / 6), rel=1e-12)
    assert np.isin(scott.sample(20, 0.0, rng()), data).all()
    one = KDE(bandwidth=0.5).fit(np.array([[0.0], [3.0]]), np.array([3.0, 1.0]), rng())
    rows = one.sample(40_000, 1.0, rng(3))[:, 0]
    assert (
        stats.kstest(
            rows, lambda z: 0.75 * stats.norm(0, 0.5).cdf(z) + 0.25 * stats.norm(3, 0.5).cdf(z)
        ).pvalue
        > 1e-6
    )
    equal = KDE().fit(np.ones((4, 2)), None, rng())
    assert equal.log_prob(np.array([[1.0, 1.0], [1.0, 2.0]])).tolist() == [np.inf, -np.inf]


# ---------------------------------------------------------------- mixture
@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_mixture_finds_its_modes(covariance):
    centres = np.array([[-6.0, 0.0], [0.0, 6.0], [6.0, 0.0]])
    law = FittedMixture(
        GaussianMixture(3), np.array([0.5, 0.3, 0.2]), centres, np.tile(np.eye(2) * 0.25, (3, 1, 1))
    )
    data = law.sample(3000, 1.0, rng())
    model = GaussianMixture(3, covariance=covariance).fit(data, None, rng(1))
    order = np.argsort(model.means[:, 0])
    assert model.means[order] == pytest.approx(centres, abs=0.1)
    assert model.shares[order] == pytest.approx(law.shares, abs=0.04)
    assert model.covs == pytest.approx(np.tile(np.eye(2) * 0.25, (3, 1, 1)), abs=0.05)
    density = sum(
        s * stats.multivariate_normal(m, c).pdf(data[:9])
        for s, m, c in zip(model.shares, model.means, model.covs, strict=True)
    )
    assert model.log_prob(data[:9]) == pytest.approx(np.log(density), rel=1e-9)
    narrow = model.sample(2000, 0.0, rng(2))
    assert np.unique(narrow.round(6), axis=0).shape[0] == 3


# ---------------------------------------------------------------- n-gram
def slow_probability(rows, order, a, v, context, x, weights=None):
    """p_k(x|c) by counting, one loop after another."""
    weights = np.ones(len(rows)) if weights is None else weights
    p = 1.0 / v
    for k in range(1, order + 1):
        c = tuple(context[len(context) - (k - 1) :])
        count = total = 0.0
        for row, weight in zip(rows, weights, strict=True):
            padded = [v] * (order - 1) + list(row)
            for i in range(order - 1, len(padded)):
                if tuple(padded[i - k + 1 : i]) == c:
                    total += weight
                    count += weight * (padded[i] == x)
        if total + a > 0:
            p = (count + a * p) / (total + a)
    return p


@pytest.mark.parametrize(("order", "smoothing"), [(1, 4.0), (2, 0.0), (3, 0.5), (4, 0.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_ngram_is_its_formula(order, smoothing, weighted):
    v = 4
    rows = rng(1).integers(0, v, (8, 5))
    weights = rng(2).random(8) + 0.1 if weighted else None
    model = NGram(v, order=order, smoothing=smoothing).fit(rows, weights, rng())
    other = rng(3).integers(0, v, (6, 5))
    for row, found in zip([*other, *rows], model.log_prob(np.concatenate([other, rows])), strict=True):
        wanted = 1.0
        for i, x in enumerate(row):
            context = ([v] * (order - 1) + list(row[:i]))[-(order - 1) :] if order > 1 else []
            ps = [slow_probability(rows, order, smoothing, v, context, y, weights) for y in range(v)]
            assert sum(ps) == pytest.approx(1.0, abs=1e-12)
            wanted *= ps[x]
        assert math.exp(found) == pytest.approx(wanted, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("bias", [1.0, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 2.0])
def test_ngram_samples_its_law(bias, smoothing):
    v = 3
    rows = rng(4).integers(0, v, (6, 3))
    model = NGram(v, order=2, smoothing=smoothing).fit(rows, None, rng())
    every = np.array([(a, b, c) for a in range(v) for b in range(v) for c in range(v)])
    p = np.ones(len(every))
    for j, row in enumerate(every):
        for i, x in enumerate(row):
            context = [v] if i == 0 else [row[i - 1]]
            ps = np.array([slow_probability(rows, 2, smoothing, v, context, y) for y in range(v)]) ** (
                1 / bias
            )
            p[j] *= ps[x] / ps.sum()
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    drawn = model.sample(60_000, bias, rng(5))
    counts = np.bincount(drawn @ [9, 3, 1], minlength=27)
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0], 60_000 * p[p > 0]).pvalue > 1e-6


def test_ngram_at_bias_0_takes_the_likeliest_and_the_lowest_on_ties():
    model = NGram(4, order=2, smoothing=0.0).fit(np.array([[2, 3, 1], [2, 1, 1], [0, 3, 3]]), None, rng())
    assert (model.sample(5, 0.0, rng()) == [2, 1, 1]).all()


# ---------------------------------------------------------------- guidance
def test_gaussian_guidance_is_its_formula():
    base = Gaussian().fit(rng(1).standard_normal((500, 3)), None, rng())
    auxiliary = Gaussian().fit(rng(2).standard_normal((400, 3)) * 1.5, None, rng())
    g = 0.7
    product = base.combine([base, auxiliary], [1 + g, -g])
    precision = (1 + g) * np.linalg.inv(base.cov) - g * np.linalg.inv(auxiliary.cov)
    shift = (1 + g) * np.linalg.solve(base.cov, base.mean) - g * np.linalg.solve(
        auxiliary.cov, auxiliary.mean
    )
    assert np.linalg.inv(product.cov) == pytest.approx(precision, rel=1e-9, abs=1e-9)
    assert product.mean == pytest.approx(np.linalg.solve(precision, shift), rel=1e-9, abs=1e-12)
    x = rng(3).standard_normal((5, 3))
    difference = product.log_prob(x) - (1 + g) * base.log_prob(x) + g * auxiliary.log_prob(x)
    assert difference == pytest.approx(difference[0], abs=1e-9)


def test_ngram_guidance_is_normalised_at_each_position():
    rows = rng(4).integers(0, 3, (10, 2))
    model = SelfGuided(NGram(3, order=2), 0.8, 40).fit(rows, None, rng())
    every = np.array([(a, b) for a in range(3) for b in range(3)])
    assert np.exp(model.log_prob(every)).sum() == pytest.approx(1.0, abs=1e-12)
    drawn = np.bincount(model.sample(40_000, 1.0, rng(5)) @ [3, 1], minlength=9)
    assert stats.chisquare(drawn, 40_000 * np.exp(model.log_prob(every))).pvalue > 1e-6
    base = model.base.log_prob(every[:3])
    wanted = 1.8 * base - 0.8 * model.auxiliary.log_prob(every[:3])
    assert np.ptp(model.log_prob(every[:3]) - wanted) < 1e-9  # rows of one first id


# ---------------------------------------------------------------- decoder
def test_decoder_rows_have_a_law_that_sums_to_one():
    config = DecoderConfig(vocab_size=3, d_model=8, n_layers=1, n_heads=1, max_length=8)
    rows = rng(1).integers(0, 2, (16, 3))
    model = DecoderLM(config, TrainConfig(steps=5, batch_size=4, length=4)).fit(rows, None, rng(2))
    every = np.array([(a, b, c) for a in range(2) for b in range(2) for c in range(2)])
    p = np.exp(model.log_prob(every))
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    drawn = np.bincount(model.sample(4000, 1.0, rng(3)) @ [4, 2, 1], minlength=8)
    assert stats.chisquare(drawn, 4000 * p / p.sum()).pvalue > 1e-6
    assert np.unique(model.sample(9, 0.0, rng(4)), axis=0).shape[0] == 1
    assert model.nbytes(rows) == 48


def test_decoder_learns_and_counts_epochs():
    rows = np.tile(np.arange(6), (20, 1))
    lm = DecoderLM(TINY, TrainConfig(steps=1, batch_size=4, length=14, lr=1e-2), epochs=20)
    assert lm._settings(140, 0).steps == math.ceil(20 * 140 / (4 * 14))
    model = lm.fit(rows, None, rng())
    assert (
        -model.log_prob(rows[:1])[0]
        < 1.0
        < -DecoderLM(TINY, BRIEF).fit(rows, None, rng()).log_prob(rows[:1])[0]
    )


# ---------------------------------------------------------------- diffusion
def test_diffusion_learns_two_modes_and_guidance_sharpens():
    data = np.concatenate([rng(1).normal(-2, 0.4, (300, 1)), rng(2).normal(2, 0.4, (150, 1))])
    model = Diffusion(1, timesteps=40, hidden=32, steps=600).fit(data, None, rng(3))
    rows = model.sample(3000, 1.0, rng(4))[:, 0]
    assert (rows > 0).mean() == pytest.approx(1 / 3, abs=0.08)
    assert np.abs(np.abs(rows) - 2).mean() < 0.6
    labelled = np.column_stack([data, data > 0]).astype(np.float64)
    model = Diffusion(1, classes=2, timesteps=40, hidden=32, steps=600).fit(labelled, None, rng(5))
    drawn = {bias: model.sample(2000, bias, rng(6)) for bias in (1.0, 0.4)}
    assert ((drawn[1.0][:, 0] > 0) == (drawn[1.0][:, 1] == 1)).mean() > 0.95
    wrong = {bias: ((rows[:, 0] > 0) != (rows[:, 1] == 1)).mean() for bias, rows in drawn.items()}
    assert wrong[0.4] <= wrong[1.0]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Gaussian(mean=[0.0]), "give mean [d] and cov [d d] together"),
        (
            lambda: Gaussian(mean=[0.0], cov=[[1.0, 0.0]]),
            "mean must have shape [d] and cov [d d], got (1,) and (1, 2)",
        ),
        (lambda: Gaussian(ddof=2), "ddof must be 0 or 1, got 2"),
        (lambda: KDE(bandwidth=0), "bandwidth must be 'scott' or a number > 0, got 0"),
        (lambda: GaussianMixture(0), "GaussianMixture: k must be a whole number >= 1, got 0"),
        (
            lambda: GaussianMixture(2, covariance="round"),
            "covariance must be one of full, tied, diag, spherical",
        ),
        (lambda: NGram(0), "vocab_size and order must be >= 1"),
        (lambda: NGram(3, smoothing=-1), "smoothing must be a finite number >= 0, got -1"),
        (
            lambda: NGram(3).fit(np.array([[3]]), None, rng()),
            "ids must be in 0 … 2 (vocab_size 3), got 3 … 3",
        ),
        (
            lambda: DecoderLM(TINY, BRIEF).fit(np.array([[8]]), None, rng()),
            "without the end token 8, got 8 … 8",
        ),
        (lambda: DecoderLM(TINY, BRIEF, epochs=0), "epochs must be a number > 0 or None, got 0"),
        (lambda: DecoderLM(TINY, BRIEF, tokenizer=object()), "tokenizer has no special token '<eos>'"),
        (lambda: Diffusion(0), "Diffusion: d must be a whole number >= 1, got 0"),
        (
            lambda: Diffusion(1, classes=2).fit(np.array([[0.0, 0.0], [0.0, 2.0]]), None, rng()),
            "must hold labels 0 … 1",
        ),
        (lambda: SelfGuided(Gaussian(), -1, 5), "strength must be a finite number >= 0, got -1"),
        (lambda: SelfGuided(Gaussian(), 0.1, 0), "SelfGuided: n must be a whole number >= 1, got 0"),
    ],
)
def test_bad_generators_are_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


@pytest.mark.bad_input
def test_guidance_that_has_no_density_names_the_largest_strength():
    data = rng().standard_normal((50, 2))
    with pytest.raises(ValueError, match=r"strength must be below (\S+) here, got 50") as caught:
        SelfGuided(Gaussian(), 50, 60).fit(data, None, rng(1))
    most = float(re.search(r"below (\S+) here", str(caught.value))[1])
    assert (
        np.linalg.eigvalsh(SelfGuided(Gaussian(), most * 0.999, 60).fit(data, None, rng(1)).combined.cov)[0]
        > 0
    )
    with pytest.raises(ValueError, match="strength must be below"):
        SelfGuided(Gaussian(), most * 1.001, 60).fit(data, None, rng(1))
    with pytest.raises(TypeError, match=r"base must have combine.*KDE does not"):
        SelfGuided(KDE(), 0.5, 10)
    labelled = GENERATORS["diffusion"][0].fit(GENERATORS["diffusion"][1], None, rng())
    with pytest.raises(ValueError, match="bias must be > 0 with classes"):
        labelled.sample(3, 0.0, rng())


@pytest.mark.bad_input
def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'lmlab[mixture]'")):
        GaussianMixture(2).fit(GENERATORS["mixture"][1], None, rng())
