"""Waits: full jitter from a private stream, what servers ask for, and no overflow."""

from __future__ import annotations

import email.utils
import math
import os
import random
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmlab.retry import Rejected, Retry, backoff
from lmlab.retry import wait as waits
from lmlab.retry.testing import testing

bad_input = pytest.mark.bad_input


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> random.Random:
    """The private stream with a seed."""
    stream = random.Random(5)
    monkeypatch.setattr(waits, "_stream", stream)
    return stream


@pytest.mark.parametrize("n", [1, 4, 30])
def test_full_jitter_is_uniform(seeded: random.Random, n: int) -> None:
    most = min(10.0, 0.1 * 2 ** (n - 1))
    wait = backoff(0.1)
    drawn = np.array([wait(n, ValueError()) for _ in range(10_000)])
    assert drawn.min() >= 0 and drawn.max() < most
    assert stats.kstest(drawn / most, "uniform").pvalue > 1e-4


def test_the_global_stream_is_not_used() -> None:
    wait = backoff(1)
    random.seed(0)
    first = [wait(1, ValueError()) for _ in range(5)]
    after = random.random()
    random.seed(0)
    second = [wait(1, ValueError()) for _ in range(5)]
    random.seed(0)
    assert first != second and after == random.random()


def test_forked_children_draw_differently() -> None:
    draws = []
    for _ in range(3):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, str(backoff(1)(1, ValueError())).encode())
            os._exit(0)
        os.waitpid(child, 0)
        draws.append(os.read(reader, 100))
        os.close(reader)
        os.close(writer)
    assert len(set(draws)) == 3


@given(
    st.floats(0, 1e3),
    st.floats(0, 1e3),
    st.floats(1, 10),
    st.integers(1, 10**6),
    st.floats(0, 1),
    st.booleans(),
)
def test_the_formula(base: float, cap: float, factor: float, n: int, u: float, jitter: bool) -> None:
    wait = backoff(base, cap=cap, factor=factor, jitter=jitter)
    try:
        grown = base * factor ** (n - 1)
    except OverflowError:
        grown = math.inf if base else 0.0
    with testing(jitter=u):
        assert wait(n, ValueError()) == (u if jitter else 1) * min(cap, grown)
        asked = Rejected(after=7)
        assert wait(n, asked) == (u if jitter else 1) * min(cap, grown) + 7


def test_a_million_attempts_do_not_overflow() -> None:
    wait = backoff(0.1, cap=3, factor=2.5, jitter=False)
    assert wait(10**6, ValueError()) == 3
    assert backoff(0)(10**6, ValueError()) == 0


class Answer(Exception):
    """As HTTP libraries make them."""

    def __init__(self, headers: Any = None, response: Any = None) -> None:
        self.headers, self.response = headers, response


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Rejected(after=3), 3),
        (Rejected(), 0),
        (Answer({"Retry-After": "12"}), 12),
        (Answer({"retry-after": "1.5"}), 1.5),
        (Answer(response=SimpleNamespace(headers={"Retry-After": "4"})), 4),
        (Answer({}, SimpleNamespace(headers={"retry-after": 5})), 5),
        (Answer({"Retry-After": "soon"}), 0),
        (Answer({"Retry-After": "-3"}), 0),
        (Answer({"Retry-After": "nan"}), 0),
        (Answer({"Retry-After": "inf"}), 0),
        (Answer({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 0),  # in the past
        (Answer("text"), 0),
        (ValueError(), 0),
    ],
)
def test_what_the_server_asks_for(error: Exception, seconds: float) -> None:
    assert waits.asked(error) == seconds


def test_retry_after_may_be_a_date() -> None:
    text = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 90 < waits.asked(Answer({"Retry-After": text})) <= 100


def test_a_retry_after_beyond_the_deadline_ends_the_run_at_once() -> None:
    tries = []

    def busy() -> None:
        tries.append(1)
        raise Answer({"Retry-After": "3600"})

    with testing() as clock, pytest.raises(Answer) as error:
        Retry(Answer, within=60).call(busy)
    assert len(tries) == 1 and clock.sleeps == [] and "(within)" in error.value.__notes__[0]


@bad_input
@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"base": -1}, ValueError, "base: expected a finite number >= 0, got -1"),
        ({"cap": math.nan}, ValueError, "cap"),
        ({"cap": math.inf}, ValueError, "cap"),
        ({"factor": 0.5}, ValueError, "factor: expected a finite number >= 1"),
        ({"base": "1"}, TypeError, "base: expected a number of seconds, got '1'"),
    ],
)
def test_numbers_are_checked(kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        backoff(**kwargs)
