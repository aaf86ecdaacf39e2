"""All faces against `reference.py`, on random scripts: attempts, waits, identity of the error, note, events."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.retry import Budget, Event, Rejected, Retry
from lmlab.retry.reference import Ledger, Step, Trace, trace
from lmlab.retry.testing import FakeClock, testing

SCRIPTS = int(os.environ.get("LMLAB_RETRY_SCRIPTS", "10000"))


class Stop(BaseException):
    """Not an `Exception`: no face may touch it."""


class Case(NamedTuple):
    scripts: tuple[tuple[Step, ...], ...]  # runs one after the other under one policy
    attempts: int | None
    within: float | None
    each: float | None
    handed: float | None
    waits: tuple[float, ...]
    budget: tuple[str, str] | None
    on: int  # the form of `on`: class, tuple, predicate
    same: bool  # the script raises one and the same object again and again


class Body:
    """Acts out a script; the last error that it raised is remembered."""

    def __init__(self, script: tuple[Step, ...], clock: FakeClock, same: bool) -> None:
        self.script, self.clock, self.n = script, clock, 0
        self.errors: dict[tuple[str, int], BaseException] = {}
        self.same = same
        self.last: BaseException | None = None

    def __call__(self) -> str:
        step = self.script[min(self.n, len(self.script) - 1)]
        self.n += 1
        self.clock.advance(step.takes)
        if step.kind == "ok":
            return "value"
        types: dict[str, type[BaseException]] = {
            "retryable": OSError,
            "fatal": KeyError,
            "stop": Stop,
            "reject": Rejected,
        }
        key = (step.kind, 0 if self.same else self.n)
        self.last = self.errors.setdefault(key, types[step.kind](self.n))
        raise self.last


def _is_os_error(error: Exception) -> bool:
    assert isinstance(error, Exception)
    return isinstance(error, OSError)


# Each face runs a body once under a policy. It returns "ok", or the error that it kept; loud ones raise.
Face = Callable[[Retry, Body], Any]


def block(io: Retry, body: Body) -> Any:
    for attempt in io:
        with attempt:
            value = body()
    assert attempt.ok and attempt.error is None and attempt.n == body.n
    return value


def block_left_early(io: Retry, body: Body) -> Any:
    for attempt in io:
        with attempt:
            value = body()
            if value:
                return value
    raise AssertionError


def quiet_block(io: Retry, body: Body) -> Any:
    value: Any = None
    for attempt in io.quiet():
        with attempt:
            value = body()
    assert attempt.n == body.n
    return value if attempt.ok else attempt.error


def loop(io: Retry, body: Body) -> Any:
    run = io.run()
    while True:
        with run:
            return body()


def decorator(io: Retry, body: Body) -> Any:
    @io
    def f(a: int, *, b: int) -> Any:
        assert (a, b) == (1, 2)
        return body()

    return f(1, b=2)


def call(io: Retry, body: Body) -> Any:
    return io.call(lambda a, *, b: body(), 1, b=2)


def quiet_call(io: Retry, body: Body) -> Any:
    outcome = io.quiet().call(lambda a: body(), 1)
    assert outcome.attempts == body.n
    return outcome.value if outcome.ok else outcome.error


def rows(io: Retry, body: Body) -> Any:
    @io
    def f(*, cursor: int = 0) -> Iterator[Any]:
        yield body()

    with_stream = f()
    try:
        return next(with_stream)
    finally:
        with_stream.close()


def stream(io: Retry, body: Body) -> Any:
    def make(cursor: int) -> Iterator[Any]:
        value = body()
        return iter([value])

    return next(iter(io.stream(make)))


async def ablock(io: Retry, body: Body) -> Any:
    async for attempt in io:
        with attempt:
            value = body()
    return value


async def ablock_quiet(io: Retry, body: Body) -> Any:
    value: Any = None
    async for attempt in io.quiet():
        async with attempt:
            value = body()
    return value if attempt.ok else attempt.error


async def aloop(io: Retry, body: Body) -> Any:
    run = io.run()
    while True:
        async with run:
            return body()


async def adecorator(io: Retry, body: Body) -> Any:
    @io
    async def f(a: int, *, b: int) -> Any:
        return body()

    return await f(1, b=2)


async def acall(io: Retry, body: Body) -> Any:
    async def f(a: int) -> Any:
        return body()

    return await io.call(f, 1)


async def aquiet_call(io: Retry, body: Body) -> Any:
    async def f(a: int) -> Any:
        return body()

    outcome = await io.quiet().call(f, 1)
    return outcome.value if outcome.ok else outcome.error


async def arows(io: Retry, body: Body) -> Any:
    @io
    async def f(*, cursor: int = 0) -> AsyncIterator[Any]:
        yield body()

    following = f()
    try:
        return await anext(following)
    finally:
        await following.aclose()


FACES: dict[str, Face] = {
    f.__name__: f
    for f in (block, block_left_early, quiet_block, loop, decorator, call, quiet_call, rows, stream)
}
ASYNC_FACES: dict[str, Face] = {
    f.__name__: f for f in (ablock, ablock_quiet, aloop, adecorator, acall, aquiet_call, arows)
}


def expected(case: Case) -> list[Trace]:
    ledger = None if case.budget is None else Ledger(*case.budget)
    return [
        trace(
            script,
            attempts=case.attempts,
            within=case.within,
            timed=case.within is not None or case.each is not None,
            handed=case.handed,
            wait=lambda n: case.waits[min(n, len(case.waits)) - 1],
            budget=ledger,
        )
        for script in case.scripts
    ]


def policy(case: Case, events: list[Event]) -> Retry:
    return Retry(
        (OSError, (TimeoutError, OSError), _is_os_error)[case.on],  # type: ignore[arg-type]
        attempts=case.attempts,
        within=case.within,
        each=case.each,
        wait=lambda n, error: case.waits[min(n, len(case.waits)) - 1],
        budget=None if case.budget is None else Budget(float(case.budget[0]), float(case.budget[1])),
        hooks=(events.append,),
    )


def check(case: Case, faces: dict[str, Face], event_loop: asyncio.AbstractEventLoop) -> None:
    wanted = expected(case)
    for name, face in faces.items():
        events: list[Event] = []
        io = policy(case, events)
        for script, want in zip(case.scripts, wanted, strict=True):
            events.clear()
            with testing() as clock:
                body = Body(script, clock, case.same)
                result, raised = run(io, face, body, case.handed, event_loop)
                where = (name, case, want)
                assert clock.sleeps == want.sleeps, where
                for limit in (case.within, case.handed):
                    assert limit is None or sum(clock.sleeps) < limit
                assert body.n == want.attempts, where
                got = [(e.kind, e.attempt, e.wait, e.elapsed, e.reason) for e in events]
                assert got == want.events, where
                if want.ended == "ok":
                    assert result == "value" and raised is None, where
                    continue
                kept = "quiet" in name and want.ended not in ("fatal", "stop")
                assert (result if kept else raised) is body.last, where
                assert body.last is not None
                assert body.last.__context__ is None and body.last.__cause__ is None, where
                notes = [] if want.note is None else [want.note]
                assert getattr(body.last, "__notes__", []) == notes, where
                if want.note is not None:
                    assert events[-1].error is body.last


def run(
    io: Retry, face: Face, body: Body, handed: float | None, event_loop: asyncio.AbstractEventLoop
) -> tuple[Any, BaseException | None]:
    def go() -> Any:
        result = face(io, body)
        return event_loop.run_until_complete(result) if asyncio.iscoroutine(result) else result

    try:
        if handed is None:
            return go(), None
        outer = Retry(ZeroDivisionError, within=handed).run()
        with outer:
            return go(), None
    except (Exception, Stop) as error:
        raised: BaseException = error
    if raised is not body.last:
        raise raised
    return None, raised


@pytest.fixture(scope="module")
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


# Times are multiples of 1/8: sums are exact, and every >= can be met with equality.
EIGHTHS = [0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 3.0]
LIMITS = [None, None, 0.125, 0.5, 1.0, 2.5, 8.0]
KINDS = ["ok", "retryable", "retryable", "retryable", "reject", "fatal", "stop"]
RATIOS = ["0", "0.1", "0.25", "0.333", "1", "2"]
BURSTS = ["0", "0.5", "1", "2", "10"]

step = st.builds(Step, st.sampled_from(KINDS), st.sampled_from([0.0, 0.0, 0.0, *EIGHTHS]))
scripts = st.lists(st.lists(step, min_size=1, max_size=6).map(tuple), min_size=1, max_size=3).map(tuple)
cases = st.builds(
    Case,
    scripts,
    st.integers(1, 5),
    st.sampled_from(LIMITS),
    st.sampled_from(LIMITS),
    st.sampled_from(LIMITS),
    st.lists(st.sampled_from(EIGHTHS), min_size=1, max_size=4).map(tuple),
    st.none() | st.tuples(st.sampled_from(RATIOS), st.sampled_from(BURSTS)),
    st.integers(0, 2),
    st.booleans(),
)


def draw(rng: random.Random) -> Case:
    """The same cases from a plain generator: a hundred times quicker than hypothesis, but they don't shrink."""

    def script() -> tuple[Step, ...]:
        size = rng.randint(1, 6)
        return tuple(Step(rng.choice(KINDS), rng.choice([0.0, 0.0, *EIGHTHS])) for _ in range(size))

    within = rng.choice(LIMITS)
    return Case(
        (script(),),
        rng.choice([1, 2, 3, 4, 5, *([None] if within else [])]),
        within,
        rng.choice(LIMITS),
        rng.choice(LIMITS),
        tuple(rng.choice(EIGHTHS[1:] if within else EIGHTHS) for _ in range(rng.randint(1, 4))),
        None if rng.random() < 0.5 else (rng.choice(RATIOS), rng.choice(BURSTS)),
        rng.randrange(3),
        rng.random() < 0.5,
    )


@settings(max_examples=300, deadline=None)
@given(cases)
def test_every_face_follows_the_reference(event_loop: asyncio.AbstractEventLoop, case: Case) -> None:
    check(case, FACES | ASYNC_FACES, event_loop)


@pytest.mark.parametrize("part", range(10))
def test_many_scripts(event_loop: asyncio.AbstractEventLoop, part: int) -> None:
    rng = random.Random(part)
    everything = FACES | ASYNC_FACES
    for _ in range(SCRIPTS // 10):
        check(draw(rng), everything, event_loop)


TRIES: dict[int, int] = {}  # in the worker: attempts of each item


def act(item: tuple[int, tuple[Step, ...]]) -> str:
    number, script = item
    n = TRIES[number] = TRIES.get(number, 0) + 1
    kind = script[min(n, len(script)) - 1].kind
    if kind == "ok":
        return "value"
    raise {"retryable": OSError, "fatal": KeyError, "reject": Rejected}[kind](n)


@pytest.mark.parametrize("part", range(25))
def test_map_follows_the_reference(part: int) -> None:
    """A worker takes a script an item, one after the other, so that one budget sees them in order."""
    rng = random.Random(part)
    case = draw(rng)
    kinds = [kind for kind in KINDS if kind != "stop"]
    scripts = tuple(tuple(Step(rng.choice(kinds)) for _ in range(rng.randint(1, 6))) for _ in range(40))
    case = case._replace(scripts=scripts, handed=None)
    events: list[Event] = []
    with testing() as clock:
        io = policy(case, events)
        outcomes = list(io.quiet().map(act, enumerate(scripts), workers=1, context="fork"))
    wanted = expected(case)
    assert clock.sleeps == [sleep for want in wanted for sleep in want.sleeps]
    got = [(e.kind, e.attempt, e.wait, e.elapsed, e.reason) for e in events]
    assert got == [event for want in wanted for event in want.events]
    for outcome, want in zip(outcomes, wanted, strict=True):
        assert outcome.attempts == want.attempts and outcome.ok is (want.ended == "ok")
        if want.ended == "ok":
            assert outcome.value == "value"
        else:
            assert outcome.error is not None and outcome.error.args[0] in (want.attempts, str(want.attempts))
            notes = [note for note in outcome.error.__notes__ if note.startswith("retry:")]
            assert notes == ([] if want.note is None else [want.note])
