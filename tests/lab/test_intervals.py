"""Intervals of paired differences against scipy and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmlab.lab.intervals import paired, t_quantile


@given(st.floats(0.5, 0.9999), st.integers(1, 200))
def test_quantiles_are_students(p: float, freedom: int) -> None:
    assert t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-8, abs=1e-9)


def test_two_rows_are_the_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=6), draw.normal(size=6)
    found = paired({"ce": a.tolist(), "emo": b.tolist()}, "ce")["emo"]
    interval = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx((b - a).mean()) and found.level == pytest.approx(0.95)


def test_holms_steps_end_at_the_first_that_is_not_seen() -> None:
    base = [1.0, 2.0, 3.0, 4.0]
    noise = [0.01, -0.01, 0.02, 0.0]
    rows = {
        "ce": base,
        "sure": [b + 1 + e for b, e in zip(base, noise, strict=True)],
        "noise": [b + e for b, e in zip(base, noise, strict=True)],
        "weak": [b + e for b, e in zip(base, [0.1, 0.3, 0.2, 0.0], strict=True)],
    }
    found = paired(rows, "ce")
    assert list(found) == ["sure", "noise", "weak"]
    assert found["sure"].seen and found["sure"].level == pytest.approx(1 - 0.05 / 3)
    assert not found["weak"].seen and found["weak"].level == pytest.approx(1 - 0.05 / 2)
    assert not found["noise"].seen and found["noise"].level == pytest.approx(0.95)


def test_one_seed_has_no_interval_and_equal_rows_no_difference() -> None:
    found = paired({"ce": [1.0], "emo": [2.0]}, "ce")["emo"]
    assert found.mean == 1 and math.isnan(found.low) and not found.seen
    same = paired({"ce": [1.0, 2.0], "emo": [1.0, 2.0]}, "ce")["emo"]
    assert (same.mean, same.low, same.high, same.seen) == (0, 0, 0, False)
