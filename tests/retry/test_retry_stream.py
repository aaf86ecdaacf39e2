"""Streams against their source under random disconnects: nothing twice, nothing lost, all closed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.retry import Budget, Retry
from lmlab.retry.testing import testing


class Source:
    """Items 0 to n - 1; breaks before the items (or the end) that `faults` names, once for each mention."""

    def __init__(self, n: int, faults: list[int], opening: int = 0) -> None:
        self.n, self.faults, self.opening = n, sorted(faults), opening
        self.opened = self.closed = 0

    def breaks(self, i: int) -> bool:
        if self.faults and self.faults[0] == i:
            self.faults.pop(0)
            return True
        return False

    def rows(self, cursor: int = 0) -> Iterator[int]:
        assert self.opened == self.closed, "the failed iterator is closed before the next is made"
        self.opened += 1
        return self._rows(cursor)

    def _rows(self, cursor: int) -> Iterator[int]:
        try:
            for i in range(cursor, self.n):
                if self.breaks(i):
                    raise ConnectionError(i)
                yield i
            if self.breaks(self.n):
                raise ConnectionError("at the end")
        finally:
            self.closed += 1

    async def arows(self, cursor: int = 0) -> AsyncIterator[int]:
        self.opened += 1
        try:
            for i in self._rows(cursor):
                await asyncio.sleep(0)
                yield i
        finally:
            pass


faulty = st.integers(0, 30).flatmap(
    lambda n: st.tuples(
        st.just(n), st.lists(st.integers(0, n), max_size=12), st.sampled_from([None, 10.0**6])
    )
)


@given(faulty)
def test_the_list_is_the_source(case: tuple[int, list[int], float | None]) -> None:
    n, faults, within = case
    io = Retry(ConnectionError, attempts=13, within=within, hooks=())
    with testing():
        source = Source(n, faults)
        assert list(io.stream(source.rows)) == list(range(n))
        assert source.opened == source.closed == len(faults) + 1 and source.faults == []

        source = Source(n, faults)

        @io
        def rows(name: str, *, cursor: int = 0) -> Iterator[int]:
            yield from source.rows(cursor)

        assert list(rows("a")) == list(range(n))
        assert source.opened == source.closed == len(faults) + 1

        source = Source(n, faults)

        @io
        async def arows(name: str, cursor: int = 0) -> AsyncIterator[int]:
            async for i in source.arows(cursor):
                yield i

        async def collect() -> list[int]:
            return [i async for i in arows("a")]

        assert asyncio.run(collect()) == list(range(n))
        assert source.opened == source.closed == len(faults) + 1


def test_a_hundred_thousand_items_with_one_percent_of_faults() -> None:
    rng = random.Random(1)
    n = 100_000
    source = Source(n, [i for i in range(n + 1) if rng.random() < 0.01])
    budget = Budget(0.5, 10)
    with testing():
        stream = Retry(ConnectionError, budget=budget, hooks=()).stream(source.rows)
        assert all(a == b for a, b in zip(stream, range(n), strict=True))
    assert stream.cursor == n and source.opened == source.closed > 900
    assert budget.calls == n + 1 and budget.retries == source.opened - 1  # the end is asked for as well


def test_a_cursor_of_the_items() -> None:
    """Pages with tokens: the cursor of the next item is a function of the last one."""
    pages = {"": ("a", "x"), "x": ("b", "y"), "y": ("c", "z")}
    faults = ["x", "y", "y"]

    def make(token: str) -> Iterator[tuple[str, str]]:
        while token in pages:
            if faults and faults[0] == token:
                faults.pop(0)
                raise ConnectionError
            yield pages[token]
            token = pages[token][1]

    with testing():
        stream = Retry(ConnectionError).stream(make, "", cursor=lambda page: page[1])
        assert [text for text, _ in stream] == ["a", "b", "c"] and stream.cursor == "z"


def test_a_checkpoint_goes_on() -> None:
    source = Source(10, [2, 6])
    io = Retry(ConnectionError)
    with testing():
        first = io.stream(source.rows)
        got = [next(first) for _ in range(4)]
        first.close()
        assert first.cursor == 4 and source.opened == source.closed
        assert got + list(io.stream(source.rows, first.cursor)) == list(range(10))


def test_the_callers_own_cursor() -> None:
    source = Source(10, [5])

    @Retry(ConnectionError)
    def rows(cursor: int = 2) -> Iterator[int]:
        yield from source.rows(cursor)

    with testing():
        assert list(rows()) == list(range(2, 10))
        source.faults = [8]
        assert list(rows(7)) == list(rows(cursor=7)) == [7, 8, 9]
    with pytest.raises(TypeError, match="unexpected keyword"):
        rows(other=1)  # type: ignore[call-arg]


def test_attempts_and_time_count_since_the_last_item() -> None:
    source = Source(5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    with testing() as clock:
        assert list(Retry(ConnectionError, attempts=3, wait=1).stream(source.rows)) == list(range(5))
        source = Source(5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
        assert list(Retry(ConnectionError, within=3, wait=1).stream(source.rows)) == list(range(5))
        source = Source(5, [3, 3, 3])
        stream = Retry(ConnectionError, attempts=3, wait=1).stream(source.rows)
        got = []
        with pytest.raises(ConnectionError, match="3"):
            for i in stream:
                got.append(i)
        assert got == [0, 1, 2] and stream.cursor == 3 and source.opened == source.closed == 3
        assert list(stream) == []  # for one use
    assert len(clock.sleeps) == 12 + 12 + 2


def test_a_consumers_error_and_other_errors_close_the_source() -> None:
    source = Source(5, [])
    stream = Retry(ConnectionError).stream(source.rows)
    for _ in stream:
        break
    stream.close()
    assert source.opened == source.closed == 1 and list(stream) == []

    def fatal(cursor: int) -> Iterator[int]:
        yield 0
        raise KeyError("not retryable")

    stream = Retry(ConnectionError).stream(fatal)
    assert next(stream) == 0
    with pytest.raises(KeyError):
        next(stream)
    assert list(stream) == []


def test_that_a_broken_connection_can_not_be_closed_is_no_news() -> None:
    class Broken:
        def __init__(self, cursor: int) -> None:
            self.i = cursor

        def __iter__(self) -> Broken:
            return self

        def __next__(self) -> int:
            self.i += 1
            if self.i == 3 and not closes:
                raise ConnectionError
            if self.i > 5:
                raise StopIteration
            return self.i - 1

        def close(self) -> None:
            closes.append(self.i)
            if len(closes) == 1:
                raise OSError("already gone")

    closes: list[int] = []
    with testing():
        assert list(Retry(ConnectionError).stream(Broken)) == [0, 1, 2, 3, 4]
    assert closes == [3, 6]


def test_a_list_is_a_source_too() -> None:
    assert list(Retry(ConnectionError).stream(lambda cursor: [7, 8, 9][cursor:])) == [7, 8, 9]


@pytest.mark.bad_input
def test_what_make_gives() -> None:
    async def arows(cursor: int = 0) -> AsyncIterator[int]:
        yield 1

    io: Any = Retry(ConnectionError)
    with pytest.raises(TypeError, match=r"gives an iterable, got async_generator; .* `async for`"):
        next(io.stream(arows))
    with pytest.raises(TypeError, match="gives an iterable, got int"):
        next(io.stream(lambda cursor: 3))

    async def main() -> None:
        with pytest.raises(TypeError, match=r"gives an async iterable, got list; .* plain `for`"):
            await anext(io.stream(lambda cursor: [3]))
        stream = io.stream(arows)
        assert await anext(stream) == 1
        with pytest.raises(RuntimeError, match=r"await stream\.aclose"):
            stream.close()
        await stream.aclose()

    asyncio.run(main())
