"""A first walk through the faces; the laws are in the other files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from lmlab.retry import Budget, Retry, atomic_write
from lmlab.retry.testing import testing


class Flaky:
    """Fails `k` times, then gives its argument."""

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, x: int) -> int:
        if self.k:
            self.k -= 1
            raise ConnectionError(f"{self.k} left")
        return x


def test_faces_agree_on_a_late_success() -> None:
    io = Retry(ConnectionError, attempts=4, budget=Budget(0, 1000))
    with testing() as clock:
        f = Flaky(2)
        for attempt in io:
            with attempt:
                got = f(7)
        assert (got, attempt.n, attempt.ok) == (7, 3, True)
        assert io.call(Flaky(2), 7) == io(Flaky(2))(7) == 7
        assert io.quiet().call(Flaky(2), 7).unwrap() == 7

        async def later(x: int, f: Flaky = Flaky(2)) -> int:
            return f(x)

        assert asyncio.run(io(later)(7)) == 7
    assert clock.sleeps == [0.1, 0.2] * 5


def test_a_generator_goes_on_at_its_cursor() -> None:
    faults = [0, 3, 3, 5]

    @Retry(ConnectionError)
    def rows(n: int, *, cursor: int = 0) -> Iterator[int]:
        for i in range(cursor, n):
            if faults and faults[0] == i:
                faults.pop(0)
                raise ConnectionError(i)
            yield i

    with testing():
        assert list(rows(8)) == list(range(8))


def test_the_last_error_comes_out(tmp_path: object) -> None:
    with testing(), pytest.raises(ConnectionError, match="0 left") as caught:
        Retry(ConnectionError, attempts=3).call(Flaky(3), 1)
    assert caught.value.__notes__ == ["retry: gave up after 3 attempts in 0.3 s (attempts)"]


def test_a_file_is_whole(tmp_path: object) -> None:
    path = f"{tmp_path}/a"
    with atomic_write(path, "w") as f:
        f.write("é")
    with open(path, "rb") as f:  # noqa: PTH123
        assert f.read() == "é".encode()
