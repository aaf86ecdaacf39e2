"""The harness: what each generation is trained on, metrics, filters, and what a run refuses."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lmlab.autophagy import (
    KDE,
    Accumulate,
    Augmentation,
    BestOf,
    Contamination,
    Correct,
    DataExhausted,
    FilterExhausted,
    Fresh,
    Gaussian,
    GaussianMixture,
    History,
    Memory,
    NGram,
    Part,
    Plan,
    RealOnly,
    Subsample,
    Synthetic,
    Verify,
    Weighted,
    rng_for,
    run,
    sweep,
    theory,
)
from lmlab.autophagy.generators.mixture import FittedMixture


@dataclass
class Spy:
    """A generator whose rows say who made them: (maker, serial number). It keeps what it was trained on."""

    seen: Any = None
    weights: Any = None
    maker: int = 0

    def fit(self, data, weights, rng):
        return Spy(data, weights, 1 + int(data[:, 0].max(initial=-1)) if self.maker == 0 else self.maker)

    def sample(self, n, bias, rng):
        return np.column_stack([np.full(n, self.maker), rng.integers(0, 2**62, n)])

    def state(self):
        return {"maker": np.array(self.maker), "seen": self.seen}

    def load(self, state):
        return Spy(state["seen"], None, int(state["maker"]))


class Law(Spy):
    """The real law: maker 0."""


def spied(loop, generations, seed=0, **more):
    """What each generation was trained on: rows, and row weights."""
    seen = []

    class Recorder(Spy):
        def fit(self, data, weights, rng):
            seen.append((data, weights))
            return Spy(data, weights, len(seen))

    history = run(loop, Recorder(), Law(maker=0), generations=generations, seeds=[seed], **more)
    return seen, history


LOOPS = st.sampled_from(
    [
        Synthetic(5, 7),
        Augmentation(4, 6),
        Fresh(5, 3),
        Accumulate(4),
        Contamination(7, 0.6),
        Memory(Synthetic(7), 3),
        Memory(Accumulate(5), 2),
        Weighted(Augmentation(4, 6), 0.3),
        Weighted(Memory(Fresh(3, 5), 2), 0.6),
        RealOnly(Accumulate(3)),
        Subsample(4, 6),
    ]
)


@settings(max_examples=60, deadline=None)
@given(LOOPS, st.integers(1, 6), st.integers(0, 50))
def test_generations_see_the_rows_of_their_plan(loop, generations, seed):
    seen, history = spied(loop, generations, seed)
    sets = {}
    for t, (rows, weights) in enumerate(seen, start=1):
        plan = loop.plan(t)
        makers = np.bincount(rows[:, 0], minlength=generations)[:generations]
        assert (history.origin[0, t - 1] == makers).all()
        assert rows.shape[0] == plan.rows
        assert np.unique(rows[:, 1]).size == plan.rows  # no row twice
        if plan.budget is not None:
            continue
        begin = 0
        for part in plan.parts:
            here = rows[begin : begin + part.n]
            assert (here[:, 0] == part.model).all()
            # A set that is named again is the same rows again; a new one shares none.
            known = sets.setdefault((part.born, part.model), here)
            assert (known == here).all()
            if weights is None:
                assert part.weight == 1.0
            else:
                assert (weights[begin : begin + part.n] == part.weight).all()
            begin += part.n
    everything = np.concatenate(list(sets.values()) or [np.zeros((0, 2), int)])
    assert np.unique(everything[:, 1]).size == everything.shape[0]


def test_a_subsample_is_uniform():
    counts = np.zeros(3)
    for seed in range(300):
        seen, _ = spied(Subsample(4, 4), 3, seed)
        counts += np.bincount(seen[2][0][:, 0], minlength=3)
    assert stats.chisquare(counts).pvalue > 1e-6


def trained_on(loop, data):
    """D_t of each of three generations."""
    rows = []
    run(
        loop, Gaussian(), data, generations=3, bias=0.5, held_out=np.zeros((2, 1)), n_eval=1,
        metrics={"keep": lambda s: rows.append(s.train) or 0.0},
    )  # fmt: skip
    return rows


def test_arms_of_one_seed_see_the_same_real_rows():
    pool, law = np.arange(200.0)[:, None], Gaussian(mean=[0.0], cov=[[1.0]])
    for data in (pool, law):
        fresh, more = trained_on(Fresh(10, 5), data), trained_on(Fresh(10, 9), data)
        assert all((a[:10] == b[:10]).all() for a, b in zip(fresh, more, strict=True))
        assert np.unique(np.concatenate([rows[:10] for rows in fresh])).size == 30
    control = trained_on(RealOnly(Fresh(10, 5)), law)
    assert all((a[:10] == b[:10]).all() for a, b in zip(trained_on(Fresh(10, 5), law), control, strict=True))


def test_rng_for_is_the_same_place_again():
    draws = {
        (seed, t, purpose, index): rng_for(seed, t, purpose, index).integers(2**63)
        for seed in (0, 1) for t in (1, 2) for purpose in ("real", "fit") for index in (0, 1)
    }  # fmt: skip
    assert len(set(draws.values())) == 16
    key = np.frombuffer(hashlib.sha256(repr((1, "fit")).encode()).digest()[:16], dtype="<u8")
    philox = np.random.Philox(key=key.astype(np.uint64), counter=[0, 0, 1, 2])
    assert np.random.Generator(philox).integers(2**63) == draws[1, 2, "fit", 1]
    assert all(rng_for(*place).integers(2**63) == value for place, value in draws.items())


# ---------------------------------------------------------------- identities
def same_metrics(a, b, **tolerance):
    for name in a.metrics:
        assert a[name] == pytest.approx(b[name], **tolerance)


CALL = {
    "data": Gaussian(mean=[0.0, 1.0], cov=[[1.0, 0.3], [0.3, 2.0]]),
    "generations": 4,
    "metrics": ("frechet", "log_det", "mean_square", "w2"),
    "held_out": np.random.default_rng(0).standard_normal((50, 2)),
    "seeds": 2,
}


def test_equal_weights_and_memory_of_one_change_nothing():
    loop = Fresh(20, 30)
    plain = run(loop, Gaussian(), **CALL)
    same_metrics(run(Weighted(loop, 0.4), Gaussian(), **CALL), plain, rel=1e-11)
    memory = run(Memory(loop, 1), Gaussian(), **CALL)
    assert (memory.values == plain.values).all() and (memory.origin == plain.origin).all()


def test_controls_have_no_trend():
    history = run(RealOnly(Synthetic(20)), Gaussian(), Gaussian(mean=[0.0], cov=[[1.0]]), generations=8,
                  seeds=100, metrics=("mean_square", "log_det"), held_out=np.zeros((2, 1)))  # fmt: skip
    t = np.arange(8) - 3.5
    for name in history.metrics:
        slopes = history[name] @ t
        assert abs(slopes.mean()) < 4 * slopes.std() / 10


@dataclass
class Regression:
    """Rows (x, y), y = x·β + noise; fitted by least squares."""

    beta: Any = None
    sigma: float = 0.5

    def fit(self, data, weights, rng):
        return Regression(np.linalg.lstsq(data[:, :-1], data[:, -1], rcond=None)[0], self.sigma)

    def sample(self, n, bias, rng):
        x = rng.standard_normal((n, self.beta.size))
        return np.column_stack([x, x @ self.beta + self.sigma * rng.standard_normal(n)])

    def state(self):
        return {"beta": self.beta}

    def load(self, state):
        return Regression(state["beta"], self.sigma)


def test_regression_errors_grow_as_the_literature_says():
    """Replace: t·σ²d/(T − d − 1); accumulate: that of one generation times Σ 1/i², to first order in d/T."""
    d, rows = 3, 60
    one = 0.25 * d / (rows - d - 1)
    for loop, factor in ((Synthetic(rows), 5.0), (Accumulate(rows), sum(1 / i**2 for i in range(1, 6)))):
        history = run(
            loop, Regression(), Regression(np.ones(d)), generations=5, seeds=300,
            metrics={"error": lambda s: ((s.model.beta - 1) ** 2).sum()}, held_out=np.zeros((2, d + 1)),
        )  # fmt: skip
        error = history["error"][:, -1]
        assert abs(error.mean() - factor * one) < 4 * error.std() / math.sqrt(300) + 0.05 * factor * one


def test_modes_are_lost_as_in_a_categorical_law():
    centres = np.array([[-40.0], [0.0], [40.0]])
    law = FittedMixture(GaussianMixture(3), np.array([0.5, 0.3, 0.2]), centres, np.ones((3, 1, 1)))
    n = 12

    def left(sample):
        mode = np.abs(sample.train - centres.T).argmin(axis=1)
        p = np.bincount(mode, minlength=3) / mode.size
        return 1 - (p**2).sum()

    history = run(Synthetic(n), GaussianMixture(3), law, generations=4, seeds=60,
                  metrics={"left": left}, held_out=np.zeros((2, 1)))  # fmt: skip
    for t in range(4):
        values = history["left"][:, t]
        wanted = theory.heterozygosity([0.5, 0.3, 0.2], n, t + 1)
        assert abs(values.mean() - wanted) < 4 * values.std() / math.sqrt(60)


# ---------------------------------------------------------------- metrics and history
def test_every_named_metric_has_a_number():
    text = np.random.default_rng(1).integers(0, 9, (80, 12))
    names = ("bits_per_byte", *(f"distinct_{n}" for n in (1, 2, 3, 4)), *(f"entropy_{n}" for n in (1, 2, 3)),
             "self_bleu", "tail_coverage", "mauve")  # fmt: skip
    history = run(Fresh(10, 10), NGram(9), text[:60], generations=2, metrics=names, held_out=text[60:].copy())
    finite = np.isfinite(history.values)
    assert finite[..., [i for i, name in enumerate(names) if name != "tail_coverage"]].all()
    assert (history["bits_per_byte"] > 0).all() and (history["distinct_1"] <= 1).all()
    vectors = (
        "frechet",
        "w2",
        "precision",
        "recall",
        "density",
        "coverage",
        "mean_square",
        "log_det",
        "mauve",
    )
    history = run(
        Fresh(10, 10), KDE(), CALL["data"], generations=2, metrics=vectors, held_out=CALL["held_out"]
    )
    assert np.isfinite(history.values).all()
    assert (history["precision"] <= 1).all()


def test_history_speaks_in_means_rows_and_lines(tmp_path):
    history = run(Fresh(6, 4), Gaussian(), **CALL | {"seeds": [3, 5, 9]})
    assert history.seeds == (3, 5, 9) and history.values.shape == (3, 4, 4)
    assert history.mean("w2") == pytest.approx(history["w2"].mean(axis=0))
    assert history.sem("w2") == pytest.approx(history["w2"].std(axis=0, ddof=1) / math.sqrt(3))
    rows = list(history.rows())
    assert len(rows) == 12 and rows[5]["seed"] == 5 and rows[5]["generation"] == 2
    assert rows[5]["n_real"] == 6 and rows[5]["n_synthetic"] == 4 and rows[0]["n_synthetic"] == 0
    odd = run(Synthetic(4), Gaussian(), Gaussian(mean=[0.0], cov=[[1.0]]), generations=2, held_out=np.zeros((2, 1)),
              metrics={"nan": lambda s: math.nan, "inf": lambda s: math.inf, "one": lambda s: 1})  # fmt: skip
    assert math.isnan(odd["nan"][0, 0]) and odd["inf"][0, 0] == math.inf
    odd.to_jsonl(tmp_path / "rows.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert lines[0]["nan"] is None and lines[0]["inf"] is None and lines[1]["one"] == 1
    with pytest.raises(KeyError, match="no metric 'bleu' in this run; it has frechet"):
        history["bleu"]
    assert np.isnan(odd.sem("one")).all()


def test_sweep_is_its_runs(tmp_path):
    loops = {"a": Synthetic(6), "b": Fresh(4, 4)}
    found = sweep(loops, Gaussian(), biases=(1.0, 0.5), out=tmp_path, **CALL)
    assert set(found) == {("a", 1.0), ("a", 0.5), ("b", 1.0), ("b", 0.5)}
    for (name, bias), history in found.items():
        alone = run(loops[name], Gaussian(), bias=bias, **CALL)
        assert (alone.values == history.values).all() and alone.digest == history.digest
        assert (History.read(tmp_path / f"{name}-{bias:g}").values == history.values).all()


def test_arms_of_a_sweep_train_once_on_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("lmlab.autophagy.job._WORTH_KEEPING", -1.0)
    fits = []

    class Counted(Gaussian):
        def fit(self, data, weights, rng):
            fits.append(data)
            return super().fit(data, weights, rng)

    loops = {
        "a": Synthetic(6, 8),
        "b": Fresh(8, 4),
        "c": RealOnly(Fresh(8, 4)),
        "d": Weighted(Fresh(8, 4), 0.7),
    }
    call = CALL | {"generations": 3, "seeds": 2}
    found = sweep(loops, Counted(), biases=(1.0, 0.5), out=tmp_path, **call)
    # A seed: one at t = 1; then two each of three loops at two biases, and two of a control that has no bias.
    assert len(fits) == 2 * (1 + 3 * 2 * 2 + 2) == len(list((tmp_path / "fits").iterdir()))
    for (name, bias), history in found.items():
        assert history.digest == run(loops[name], Counted(), bias=bias, **call).digest


# ---------------------------------------------------------------- filters
class Dice:
    """Rows [n 1] of ids by their shares; fitted by counting."""

    def __init__(self, p):
        self.p = np.asarray(p)

    def fit(self, data, weights, rng):
        return Dice(np.bincount(data[:, 0], minlength=self.p.size) / data.shape[0])

    def sample(self, n, bias, rng):
        return rng.choice(self.p.size, (n, 1), p=self.p)

    def state(self):
        return {"p": self.p}

    def load(self, state):
        return Dice(state["p"])


def draws(p, filters, n=20_000):
    """Rows that generation 2 sees, drawn from the shares p through the filters."""

    class Fixed(Dice):
        def fit(self, data, weights, rng):
            seen.append(data)
            return Fixed(self.p)

    seen = []
    run(Synthetic(n), Fixed(p), Fixed(p), generations=2, filters=filters)
    return seen[1][:, 0]


def test_best_of_is_the_curated_law():
    p, reward = np.array([0.1, 0.2, 0.3, 0.4]), np.array([2.0, 1.0, 0.5, -1.0])
    for k in (1, 2, 5):
        counts = np.bincount(draws(p, [BestOf(k, lambda rows: reward[rows[:, 0]])]), minlength=4)
        assert stats.chisquare(counts, 20_000 * theory.curated(p, reward, 1, k=k)).pvalue > 1e-6
        hot = np.bincount(draws(p, [BestOf(k, lambda rows: reward[rows[:, 0]], 2.0)]), minlength=4)
        assert stats.chisquare(hot, 20_000 * theory.curated(p, reward / 2, 1, k=k)).pvalue > 1e-6
    best = np.bincount(draws(p, [BestOf(3, lambda rows: reward[rows[:, 0]], 0.0)]), minlength=4)
    cumulative = np.cumsum(p[::-1]) ** 3  # the best of three: by rank, worst first
    assert stats.chisquare(best, 20_000 * np.diff(cumulative, prepend=0)[::-1]).pvalue > 1e-6
    assert draws([0.5, 0.5], [BestOf(4, lambda rows: np.zeros(len(rows)), 0.0)]).mean() == pytest.approx(
        0.5, abs=0.02
    )


def test_verify_correct_and_chains():
    p = np.array([0.25, 0.25, 0.5])
    rows = draws(p, [Verify(lambda rows: rows[:, 0] != 2)])
    assert stats.chisquare(np.bincount(rows, minlength=3)[:2]).pvalue > 1e-6 and rows.max() == 1
    assert (draws(p, [Verify(lambda rows: rows[:, 0] == 2), Correct(lambda rows: rows - 2)]) == 0).all()


def test_filters_act_on_training_rows_and_not_on_evaluation():
    seen = []
    run(
        Synthetic(50), Dice([0.5, 0.5]), Dice([0.5, 0.5]), generations=2, filters=[Correct(np.zeros_like)],
        metrics={"x": lambda s: seen.append((s.train.sum(), s.synthetic.sum())) or 0}, held_out=np.zeros((2, 1)),
    )  # fmt: skip
    assert seen[0][0] > 0 and seen[0][1] > 0 and seen[1][0] == 0


# ---------------------------------------------------------------- refusals
POOL = np.random.default_rng(2).standard_normal((40, 2))


class Wrong(Gaussian):
    """A Gaussian whose models sample what `spoil` makes of good rows."""

    def __init__(self, spoil, **given):
        super().__init__(**given)
        self.spoil = spoil

    def fit(self, data, weights, rng):
        return Wrong(self.spoil, mean=data.mean(axis=0), cov=np.cov(data, rowvar=False))

    def sample(self, n, bias, rng):
        return self.spoil(super().sample(n, bias, rng))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("loop", "more", "error", "text"),
    [
        (Fresh(5, 5), {"bias": 1.5}, ValueError, "bias must be a number in [0, 1]"),
        (Fresh(5, 5), {"generations": 0}, ValueError, "generations must be a whole number >= 1, got 0"),
        (Fresh(5, 5), {"seeds": 0}, ValueError, "seeds must be a whole number >= 1, got 0"),
        (Fresh(5, 5), {"seeds": [1, 1]}, ValueError, "seeds must be different numbers"),
        (Fresh(5, 5), {"workers": 0}, ValueError, "workers must be a whole number >= 1, got 0"),
        (Fresh(5, 5), {"backend": "mpi"}, ValueError, "backend must be 'loky', 'threading' or 'ray', got 'mpi'"),
        (Fresh(5, 5), {"metrics": ("w2",)}, ValueError, "metrics need held_out="),
        (Fresh(5, 5), {"metrics": "w2"}, ValueError, "write metrics=('w2',)"),
        (Fresh(5, 5), {"metrics": ("frechett",), "held_out": POOL.copy()}, ValueError,
         "unknown metric 'frechett'; nearest: frechet"),
        (Fresh(5, 5), {"metrics": {"x": 3}, "held_out": POOL.copy()}, ValueError, "'x' must be a function of a Sample"),
        (Fresh(5, 5), {"metrics": ("w2",), "held_out": POOL[:5]}, ValueError, "held-out rows would be trained on"),
        (Fresh(5, 5), {"metrics": ("self_bleu",), "held_out": POOL.copy()}, ValueError,
         "'self_bleu' needs rows of integer ids [n t], held_out is float64 [40, 2]"),
        (Fresh(5, 5), {"metrics": ("recall",), "held_out": POOL[:5].copy()}, ValueError,
         "'recall' needs at least 6 held-out rows (k + 1, k = 5), got 5"),
        (Fresh(20, 5), {"generations": 3}, DataExhausted,
         "needs 60 real rows over 3 generations (t=1: 20, t=2: 40, t=3: 60), got 40; they end at generation 3"),
        (Fresh(5, 5), {"data": [1, 2]}, ValueError, "data must be an array of rows or a fitted Generator, got list"),
    ],
)  # fmt: skip
def test_a_run_refuses_before_any_work(loop, more, error, text):
    class Idle(Gaussian):
        def fit(self, data, weights, rng):
            raise AssertionError("work was done")

    call = {"data": POOL, "generations": 2} | more
    with pytest.raises(error, match=re.escape(text)):
        run(loop, Idle(), **call)


@pytest.mark.bad_input
def test_a_metric_that_needs_log_prob_names_the_generator():
    with pytest.raises(TypeError, match="'bits_per_byte' needs log_prob, which Dice does not have"):
        run(Synthetic(5), Dice([0.5, 0.5]), Dice([0.5, 0.5]), generations=1, metrics=("bits_per_byte",),
            held_out=np.zeros((5, 1), int))  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda rows: rows[1:], "Wrong gave 4 rows for 5, at generation 2, seed 0"),
        (lambda rows: rows * np.nan, "Wrong gave rows with NaN, at generation 2, seed 0"),
        (
            lambda rows: rows.astype(np.float32),
            "Wrong gave rows of float32 [2], the real rows are float64 [2]",
        ),
        (lambda rows: rows[:, :1], "Wrong gave rows of float64 [1], the real rows are float64 [2]"),
        (lambda rows: rows.tolist(), "Wrong gave list for an array of rows"),
    ],
)
def test_wrong_rows_name_generator_generation_and_seed(spoil, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        run(Synthetic(5), Wrong(spoil), POOL, generations=3)


@pytest.mark.bad_input
def test_filters_that_fail_say_why():
    law = Dice([0.5, 0.5])
    with pytest.raises(FilterExhausted, match="0 rows accepted of 5 wanted after 3 rounds") as caught:
        run(
            Synthetic(5), law, law, generations=2, filters=[Verify(lambda rows: rows[:, 0] > 1, max_rounds=3)]
        )
    assert (caught.value.accepted, caught.value.wanted, caught.value.rounds) == (0, 5, 3)
    for bad, text in (
        (Verify(lambda rows: rows), "accept must give bool [5], one a row, got int64 (5, 1)"),
        (
            BestOf(2, lambda rows: np.zeros(3)),
            "reward must give 10 finite numbers, one a row, got shape (3,)",
        ),
        (Correct(lambda rows: rows[:2]), "Correct gave 2 rows for 5, at generation 2, seed 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            run(Synthetic(5), law, law, generations=2, filters=[bad])
    for make, text in (
        (lambda: BestOf(0, len), "k must be >= 1"),
        (lambda: BestOf(2, len, -1), "temperature finite and >= 0"),
        (lambda: Verify(len, 0), "max_rounds must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            make()


@pytest.mark.bad_input
def test_a_wrong_loop_is_refused_before_any_work():
    class Later:
        def plan(self, t):
            return Plan((Part(5, t, t),)) if t > 1 else Plan((Part(5, 0, 1),))

    with pytest.raises(ValueError, match=r"loop .* at t=2: .* needs model 2"):
        run(Later(), Gaussian(), POOL, generations=2)
