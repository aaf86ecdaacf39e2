"""The budget law at every grant, and its equality when all calls fail."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.retry import Budget, Retry
from lmlab.retry.budget import Cells, exact
from lmlab.retry.testing import testing


class CheckingLock:
    """The lock of a budget that asserts the law whenever it is left: at every grant and refusal."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.lock, self.broken, self.seen = budget, threading.Lock(), 0, 0
        self.ratio, self.burst = Fraction(repr(budget.ratio)), Fraction(repr(budget.burst))
        object.__setattr__(budget, "_lock", self)

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        calls = self.budget._begun.total() - self.budget._base
        self.seen += 1
        self.broken += self.budget._retries > floor(self.ratio * calls + self.burst)
        self.lock.release()


@pytest.fixture
def eager_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def fail() -> None:
    raise ConnectionError


def faces(io: Retry) -> list[Callable[[], Any]]:
    def block() -> None:
        for attempt in io:
            with attempt:
                fail()

    def loop() -> None:
        run = io.run()
        while True:
            with run:
                return fail()

    return [block, loop, io(fail), lambda: io.call(fail), lambda: next(io.stream(lambda c: fail()))]  # type: ignore


@pytest.mark.parametrize(("ratio", "burst"), [(0.1, 1), (0.333, 0), (0, 3), (0, 0), (1, 0.5), (2.5, 10)])
def test_eight_threads_of_mixed_faces(eager_threads: None, ratio: float, burst: float) -> None:
    budget = Budget(ratio, burst)
    lock = CheckingLock(budget)
    io = Retry(ConnectionError, attempts=10**6, wait=0, budget=budget, hooks=())
    each = 60

    def work() -> None:
        for k in range(each):
            face = every[k % len(every)]
            with pytest.raises(ConnectionError):
                face()

    with testing():
        every = faces(io)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    calls = 8 * each
    assert budget.calls == calls
    assert budget.retries == floor(Fraction(repr(ratio)) * calls + Fraction(repr(burst)))
    assert budget.refused == calls  # every call ended by a refusal
    assert lock.broken == 0 and lock.seen >= budget.retries + budget.refused


def test_a_thousand_tasks() -> None:
    budget = Budget(0.1, 1)
    lock = CheckingLock(budget)
    io = Retry(ConnectionError, attempts=10**6, wait=0, budget=budget, hooks=())

    @io
    async def afail() -> None:
        await asyncio.sleep(0)
        raise ConnectionError

    async def main() -> None:
        results = await asyncio.gather(*(afail() for _ in range(1000)), return_exceptions=True)
        assert all(isinstance(result, ConnectionError) for result in results)

    with testing():
        asyncio.run(main())
    assert (budget.calls, budget.retries) == (1000, 101) and lock.broken == 0


@given(
    st.decimals(0, 3, places=3, allow_nan=False).map(float),
    st.decimals(0, 20, places=2, allow_nan=False).map(float),
    st.lists(st.booleans(), max_size=200),
)
def test_grants_are_those_of_the_law(ratio: float, burst: float, script: list[bool]) -> None:
    budget = Budget(ratio, burst)
    r, b = Fraction(repr(ratio)), Fraction(repr(burst))
    calls = retries = 0
    for begins in script:
        if begins:
            budget.begin()
            calls += 1
        else:
            granted = retries + 1 <= floor(r * calls + b)
            assert budget.spend() is granted
            retries += granted
        assert (budget.calls, budget.retries) == (calls, retries)


@pytest.mark.parametrize("value", [0.1, 1e-07, 2.5e22, 0, 3, 1 / 3, 123.456, 1e16, 5e-324])
def test_numbers_are_taken_as_they_are_written(value: float) -> None:
    assert Fraction(*exact("ratio", value)) == Fraction(repr(value))


def test_no_budget_is_counted_before_a_run() -> None:
    budget = Budget(0.1, 1)
    io = Retry(ConnectionError, budget=budget)
    io.quiet()
    decorated = io(fail)
    assert budget.calls == 0
    with testing(), pytest.raises(ConnectionError):
        decorated()
    assert budget.calls == 1


def test_own_budgets_keep_their_begin() -> None:
    begun = []

    class Loud(Budget):
        def begin(self) -> None:
            begun.append(1)
            super().begin()

    io = Retry(ConnectionError, budget=Loud(0.1, 1))
    io.call(int)
    io(lambda: 0)()
    assert len(begun) == 2 and io.budget is not None and io.budget.calls == 2


def test_a_forked_child_starts_at_zero() -> None:
    budget = Budget(0.5, 4)
    io = Retry(ConnectionError, attempts=10, budget=budget, wait=0, hooks=())
    decorated = io(fail)
    with testing(), pytest.raises(ConnectionError):
        decorated()
    with budget._lock:  # the child must not inherit a held lock
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            numbers = [budget.calls, budget.retries, budget.refused]
            with testing():
                try:
                    decorated()
                except ConnectionError:
                    numbers += [budget.calls, budget.retries, budget.refused]
            os.write(writer, pickle.dumps(numbers))
            os._exit(0)
    os.waitpid(child, 0)
    assert pickle.loads(os.read(reader, 1000)) == [0, 0, 0, 1, 4, 1]
    os.close(reader)
    os.close(writer)
    assert (budget.calls, budget.retries) == (1, 4)


def test_cells_count_for_builds_without_the_gil(eager_threads: None) -> None:
    cells = Cells()

    def work() -> None:
        for _ in range(2000):
            cells.tick()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cells.total() == 16000
