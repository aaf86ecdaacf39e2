"""The loops' plans against a second statement of the table, and what a loop refuses."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.autophagy import (
    Accumulate,
    Augmentation,
    Contamination,
    Fresh,
    Memory,
    Part,
    Plan,
    RealOnly,
    Subsample,
    Synthetic,
    Weighted,
)
from lmlab.autophagy.loops import schedule

sizes = st.integers(1, 40)
first = st.none() | sizes


@st.composite
def bases(draw):
    """A loop of the table and its sets at t >= 2 as {(born, model): n}, written down a second time."""
    kind = draw(
        st.sampled_from(["synthetic", "augmentation", "fresh", "accumulate", "contamination", "subsample"])
    )
    n_r, n_s, init = draw(sizes), draw(sizes), draw(first)
    if kind == "synthetic":
        return Synthetic(n_s, init), init or n_s, lambda t: {(t, t - 1): n_s}
    if kind == "augmentation":
        return Augmentation(n_r, n_s), n_r, lambda t: {(1, 0): n_r, (t, t - 1): n_s}
    if kind == "fresh":
        return Fresh(n_r, n_s, init), init or n_r, lambda t: {(t, 0): n_r, (t, t - 1): n_s}
    if kind == "contamination":
        p = draw(st.floats(0, 1))
        made = math.floor(n_r * p + 0.5)
        table = {"real": n_r - made, "synthetic": made}
        return (
            Contamination(n_r, p),
            n_r,
            lambda t: {
                k: v for k, v in {(t, 0): table["real"], (t, t - 1): table["synthetic"]}.items() if v > 0
            },
        )
    start = init or n_s
    kept = lambda t: {(1, 0): start} | {(b, b - 1): n_s for b in range(2, t + 1)}  # noqa: E731
    return (Accumulate(n_s, init) if kind == "accumulate" else Subsample(n_s, draw(first), init)), start, kept


def named(plan: Plan) -> dict[tuple[int, int], int]:
    assert len({(p.born, p.model) for p in plan.parts}) == len(plan.parts)
    return {(p.born, p.model): p.n for p in plan.parts}


@settings(max_examples=200, deadline=None)
@given(bases(), st.integers(2, 12))
def test_plan_is_the_table(base, t):
    loop, start, table = base
    assert named(loop.plan(1)) == {(1, 0): start}
    plan = loop.plan(t)
    assert named(plan) == table(t)
    order = [(p.model > 0, p.born, -p.model) for p in plan.parts]
    assert order == sorted(order)
    assert RealOnly(loop).plan(t) == Plan((Part(plan.rows, 0, t),))


@settings(max_examples=200, deadline=None)
@given(bases(), st.integers(1, 12), st.integers(1, 6))
def test_memory_splits_each_synthetic_set(base, t, k):
    loop, _, _ = base
    wanted = {}
    for (born, model), n in named(loop.plan(t)).items():
        m = min(k, born - 1)
        if model == 0:
            wanted[born, model] = n
        else:
            for i in range(m):
                rows = n // m + (1 if i < n % m else 0)
                if rows:
                    wanted[born, born - 1 - i] = rows
    plan = Memory(loop, k).plan(t)
    assert named(plan) == wanted
    assert plan.rows == loop.plan(t).rows
    if k == 1:
        assert plan == loop.plan(t)


@settings(max_examples=200, deadline=None)
@given(bases(), st.integers(1, 12), st.floats(0.01, 0.99))
def test_weighted_gives_the_real_rows_their_share(base, t, w):
    loop, _, _ = base
    if isinstance(loop, Subsample):
        with pytest.raises(ValueError, match="subsample"):
            Weighted(loop, w)
        return
    plan, plain = Weighted(loop, w).plan(t), loop.plan(t)
    assert named(plan) == named(plain)
    total = sum(p.n * p.weight for p in plan.parts)
    assert total == pytest.approx(plan.rows, rel=1e-12)
    real = sum(p.n * p.weight for p in plan.parts if p.model == 0)
    if {p.model == 0 for p in plain.parts} == {True, False}:
        assert real == pytest.approx(w * total, rel=1e-12)
    else:
        assert plan == plain


def test_subsample_takes_what_is_there():
    loop = Subsample(10, budget=25)
    assert [loop.plan(t).budget for t in (1, 2, 3, 4)] == [10, 20, 25, 25]
    assert Subsample(10, n_initial=30).plan(1).budget == 10


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Synthetic(0), "Synthetic: n_synth must be a whole number >= 1, got 0"),
        (lambda: Fresh(10, -1), "Fresh: n_synth must be a whole number >= 0, got -1"),
        (lambda: Fresh(1.5, 1), "Fresh: n_real must be a whole number >= 0, got 1.5"),
        (lambda: Fresh(0, 10), "Fresh: n_initial must be given when n_real is 0"),
        (lambda: Contamination(10, 1.2), "Contamination: synthetic must be a number in [0, 1], got 1.2"),
        (lambda: Contamination(10, math.nan), "synthetic must be a number in [0, 1], got nan"),
        (lambda: Weighted(Fresh(1, 1), 1.0), "Weighted: w must be a number in (0, 1), got 1.0"),
        (lambda: Memory(Fresh(1, 1), 0), "Memory: k must be a whole number >= 1, got 0"),
        (lambda: Memory(Weighted(Memory(Fresh(1, 1), 2), 0.5), 2), "Memory: loop has a memory already"),
        (
            lambda: Weighted(Memory(Subsample(3), 2), 0.5),
            "Weighted: a subsample has no fixed number of real rows",
        ),
    ],
)
def test_bad_loops_are_refused(make, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        make()


class Written:
    """A loop of the user's own."""

    def __init__(self, *plans):
        self.plans = plans

    def plan(self, t):
        return self.plans[t - 1]

    def __repr__(self):
        return "Written()"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("second", "text"),
    [
        (Plan((Part(5, 2, 2),)), "needs model 2"),
        (Plan((Part(5, 1, 3),)), "born later than t"),
        (Plan((Part(5, 1, 2), Part(5, 1, 2))), "named twice"),
        (Plan((Part(6, 0, 1),)), "has n=6, had 5 before"),
        (Plan(()), "no rows"),
        (Plan((Part(5, 1, 2),), budget=6), "budget 6"),
    ],
)
def test_wrong_plans_are_named(second, text):
    with pytest.raises(ValueError, match=re.escape("loop Written() at t=2: ") + ".*" + re.escape(text)):
        schedule(Written(Plan((Part(5, 0, 1),)), second), 2)
