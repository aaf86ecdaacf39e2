"""What type checkers must accept and refuse. Not run: checked by mypy --strict in tests/retry/test_retry_typing.py.

Each `type: ignore[code]` is an error that must be found; one that is not needed is an error as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import IO, Any, assert_type

from lmlab.retry import Attempt, Budget, Counters, Outcome, Retry, Stream, atomic_write, caused_by, network
from lmlab.retry.testing import testing

io = Retry(ConnectionError, attempts=5, within=60)


# Policies

Retry()  # type: ignore[call-arg]
Retry(KeyboardInterrupt)  # type: ignore[arg-type]
Retry(ConnectionError, 3)  # type: ignore[call-arg]
Retry((OSError, TimeoutError), wait=1, budget=Budget(0.1), hooks=(Counters(),))
Retry(caused_by(OSError), wait=lambda n, error: n * 0.5)
Retry(lambda error: "reset" in str(error))
Retry(OSError, wait=lambda n: 1.0)  # type: ignore[arg-type, misc]
assert_type(network(attempts=3), Retry)
assert_type(io.replace(attempts=3), Retry)


# Functions, methods, coroutines: the signature is kept, wrong arguments are found


@io
def fetch(url: str, *, size: int = 0) -> bytes:
    return url.encode()


assert_type(fetch("a"), bytes)
fetch("a", size=3)
fetch(3)  # type: ignore[arg-type]
fetch("a", 3)  # type: ignore[call-arg]
fetch()  # type: ignore[call-arg]
fetch("a", depth=3)  # type: ignore[call-arg]


class Client:
    @io
    def get(self, path: str, tries: int = 1) -> str:
        return path * tries

    @io
    async def aget(self, path: str) -> str:
        return path

    @classmethod
    @io
    def of(cls, path: str) -> Client:
        return cls()

    @staticmethod
    @io
    def size(path: str) -> int:
        return len(path)

    @property
    @io
    def state(self) -> int:
        return 1

    @io
    def rows(self, path: str, *, cursor: int = 0) -> Iterator[int]:
        yield cursor


client = Client()
assert_type(client.get("a"), str)
client.get("a", tries=2)
client.get(3)  # type: ignore[arg-type]
client.get("a", "b")  # type: ignore[arg-type]
client.get()  # type: ignore[call-arg]
assert_type(Client.of("a"), Client)
Client.of(3)  # type: ignore[arg-type]
assert_type(Client.size("a"), int)
Client.size(3)  # type: ignore[arg-type]
assert_type(client.state, int)


@io
async def afetch(url: str) -> bytes:
    return url.encode()


async def asynchronous() -> bytes:
    assert_type(await afetch("a"), bytes)
    assert_type(await client.aget("a"), str)
    await afetch(3)  # type: ignore[arg-type]
    await client.aget()  # type: ignore[call-arg]
    assert_type(await io.call(afetch, "a"), bytes)
    assert_type(await io.quiet().call(afetch, "a"), Outcome[bytes])
    await io.call(afetch, 3)  # type: ignore[arg-type]
    async for attempt in io:
        assert_type(attempt, Attempt)
        with attempt:
            page = await afetch("a")
        async with attempt:
            page = await afetch("a")
    run = io.run()
    while True:
        async with run:
            return page


# The typed twin of the loop: no "missing return", nothing "possibly unbound"


def typed_loop(url: str) -> bytes:
    run = io.run()
    while True:
        with run:
            return fetch(url)


def loop_without_return(url: str) -> bytes:  # type: ignore[return]
    for attempt in io:
        with attempt:
            return fetch(url)


def quiet(url: str) -> str:
    for attempt in io.quiet():
        with attempt:
            fetch(url)
    assert_type(attempt.ok, bool)
    assert_type(attempt.error, Exception | None)
    return "" if attempt.error is None else str(attempt.error)


# call, quiet call

assert_type(io.call(fetch, "a", size=3), bytes)
io.call(fetch, 3)  # type: ignore[arg-type]
io.call(fetch, "a", depth=3)  # type: ignore[call-arg]
assert_type(io.call(client.get, "a"), str)
io.call(client.get)  # type: ignore[call-arg]
outcome = io.quiet().call(fetch, "a")
assert_type(outcome, Outcome[bytes])
assert_type(outcome.unwrap(), bytes)
assert_type(outcome.value, bytes | None)
io.quiet().call(fetch, 3)  # type: ignore[call-overload]


# Streams


@io
def rows(path: str, *, cursor: int = 0) -> Iterator[str]:
    yield path


@io
async def arows(path: str, *, cursor: int = 0) -> AsyncIterator[str]:
    yield path


def open_at(cursor: int) -> list[str]:
    return []


def page_after(token: str) -> list[tuple[str, str]]:
    return []


for row in rows("a"):
    assert_type(row, str)
rows(3)  # type: ignore[arg-type]
rows("a", start=3)  # type: ignore[call-arg]
for number in client.rows("a"):
    assert_type(number, int)
client.rows(3)  # type: ignore[arg-type]
assert_type(io.stream(open_at), Stream[str])
assert_type(io.stream(page_after, "", cursor=lambda page: page[1]), Stream[tuple[str, str]])
io.stream(page_after)  # type: ignore[arg-type]


async def through() -> None:
    async for row in arows("a"):
        assert_type(row, str)


# map


def measure(text: str) -> float:
    return 0.0


for value in io.map(measure, ["a"], workers=8):
    assert_type(value, float)
for done in io.quiet().map(measure, ["a"]):
    assert_type(done, Outcome[float])
io.map(measure, [1])  # type: ignore[arg-type]
io.map(measure, ["a"], jobs=8)  # type: ignore[call-arg]


# Files and tests

with atomic_write("a") as f:
    assert_type(f, IO[bytes])
    f.write("text")  # type: ignore[call-overload]
with atomic_write(Path("a"), "w") as g:
    assert_type(g, IO[str])
with testing(attempts=2) as clock:
    assert_type(clock.sleeps, list[float])

main: Coroutine[Any, Any, bytes] = asynchronous()
asyncio.run(main)
