"""What is not an `Exception` passes at once, in every face; deadlines stop tasks and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from lmlab.retry import Retry, remaining
from lmlab.retry.testing import FakeClock, testing

EVENTS: list[Any] = []
IO = Retry(lambda error: True, attempts=5, wait=1, hooks=(EVENTS.append,))
POLICIES = [IO, IO.replace(within=10**6), IO.replace(each=10**6)]

Body = Callable[[], Awaitable[Any]]


async def block(io: Retry, f: Body) -> Any:
    async for attempt in io:
        with attempt:
            value = await f()
    return value


async def ablock(io: Retry, f: Body) -> Any:
    async for attempt in io.quiet():
        async with attempt:
            await f()
    if attempt.error is not None:
        raise attempt.error


async def loop(io: Retry, f: Body) -> Any:
    run = io.run()
    while True:
        async with run:
            return await f()


async def decorated(io: Retry, f: Body) -> Any:
    @io
    async def g() -> Any:
        return await f()

    return await g()


async def called(io: Retry, f: Body) -> Any:
    async def g() -> Any:
        return await f()

    return await io.call(g)


async def quiet_call(io: Retry, f: Body) -> Any:
    async def g() -> Any:
        return await f()

    return (await io.quiet().call(g)).unwrap()


async def streamed(io: Retry, f: Body) -> Any:
    @io
    async def rows(cursor: int = 0) -> AsyncIterator[Any]:
        yield await f()

    opened = rows()
    try:
        return await anext(opened)
    finally:
        await opened.aclose()


FACES = [block, ablock, loop, decorated, called, quiet_call, streamed]
TIMED_FACES = [ablock, loop, decorated, called, quiet_call, streamed]  # `with` in a task has no alarm


@pytest.mark.parametrize("io", POLICIES, ids=["bare", "within", "each"])
@pytest.mark.parametrize("face", FACES)
def test_a_cancelled_body_runs_once(face: Callable[..., Any], io: Retry) -> None:
    bodies = 0

    async def body() -> None:
        nonlocal bodies
        bodies += 1
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(face(io, body))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel("mine")
        with pytest.raises(asyncio.CancelledError) as error:
            await task
        assert task.cancelled() and not hasattr(error.value, "__notes__")

    EVENTS.clear()
    with testing() as clock:
        asyncio.run(main())
    assert bodies == 1 and clock.sleeps == [] and EVENTS == []


class Endless(FakeClock):
    """A clock whose sleeps in tasks end only by a cancellation."""

    async def apause(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await asyncio.Event().wait()


@pytest.mark.parametrize("io", POLICIES, ids=["bare", "within", "each"])
@pytest.mark.parametrize("face", FACES)
def test_a_cancelled_sleep_ends_the_run(
    face: Callable[..., Any], io: Retry, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = 0

    async def body() -> None:
        nonlocal bodies
        bodies += 1
        raise ConnectionError

    async def main() -> None:
        task = asyncio.create_task(face(io, body))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    clock = Endless()
    monkeypatch.setattr("lmlab.retry.clock.active", clock)
    asyncio.run(main())
    assert bodies == 1 and clock.sleeps == [1.0]


@pytest.mark.parametrize("io", POLICIES, ids=["bare", "within", "each"])
@pytest.mark.parametrize("face", FACES)
def test_a_cancelled_scope_of_trio(face: Callable[..., Any], io: Retry) -> None:
    bodies = 0

    async def stuck() -> None:
        nonlocal bodies
        bodies += 1
        scope.cancel()
        await trio.sleep_forever()

    async def failing() -> None:
        nonlocal bodies
        bodies += 1
        scope.cancel()
        raise ConnectionError

    async def main(body: Body) -> None:
        nonlocal scope
        with trio.CancelScope() as scope:
            await face(io, body)
        assert scope.cancelled_caught

    scope = trio.CancelScope()
    EVENTS.clear()
    with testing() as clock:
        trio.run(main, stuck)
        assert bodies == 1 and clock.sleeps == [] and EVENTS == []
        trio.run(main, failing)  # cancelled when it comes to sleep
        assert bodies == 2 and clock.sleeps == [1.0]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_stops_pass_every_sync_face(stop: type[BaseException]) -> None:
    bodies = 0

    def body(*_: object) -> None:
        nonlocal bodies
        bodies += 1
        raise stop

    def in_block(io: Any) -> None:
        for attempt in io:
            with attempt:
                body()

    def in_loop(io: Retry) -> None:
        run = io.run()
        while True:
            with run:
                return body()

    EVENTS.clear()
    with testing() as clock:
        for io in POLICIES:
            faces: list[Callable[[], Any]] = [
                lambda io=io: in_block(io),  # type: ignore[misc]
                lambda io=io: in_block(io.quiet()),  # type: ignore[misc]
                lambda io=io: in_loop(io),  # type: ignore[misc]
                io(body),
                lambda io=io: io.call(body),  # type: ignore[misc]
                lambda io=io: io.quiet().call(body),  # type: ignore[misc]
                lambda io=io: next(io.stream(body)),  # type: ignore[misc, arg-type, type-var]
            ]
            for face in faces:
                bodies = 0
                with pytest.raises(stop) as error:
                    face()
                assert bodies == 1 and error.value.__context__ is None
                assert not hasattr(error.value, "__notes__")
    assert EVENTS == [] and clock.sleeps == []


# Deadlines of tasks


@pytest.mark.parametrize("run", [asyncio.run, lambda main: trio.run(lambda: main)], ids=["asyncio", "trio"])
@pytest.mark.parametrize("face", TIMED_FACES)
def test_each_stops_an_attempt_and_it_is_retried(face: Callable[..., Any], run: Callable[..., Any]) -> None:
    lengths = [5.0, 3.0, 1.0]  # seconds that the attempts would take
    left: list[float | None] = []
    io = Retry(ConnectionError, each=2, wait=0.5, hooks=(EVENTS.append,))  # TimeoutError is not in `on`

    async def body() -> str:
        left.append(remaining())
        clock.advance(lengths.pop(0))
        await nothing()
        return "done"

    EVENTS.clear()
    with testing() as clock:
        result = run(face(io, body))
        assert result == "done" or face is ablock
    assert clock.sleeps == [0.5, 0.5] and left == [2, 2, 2]
    assert [event.kind for event in EVENTS] == ["retry", "retry", "recovered"]
    assert all(type(event.error) is TimeoutError for event in EVENTS[:2])
    assert "longer than each=2 s" in str(EVENTS[0].error)


@pytest.mark.parametrize("run", [asyncio.run, lambda main: trio.run(lambda: main)], ids=["asyncio", "trio"])
@pytest.mark.parametrize("face", TIMED_FACES)
def test_within_stops_the_run(face: Callable[..., Any], run: Callable[..., Any]) -> None:
    io = Retry(ConnectionError, within=3, wait=0.5, hooks=(EVENTS.append,))
    bodies = 0

    async def body() -> None:
        nonlocal bodies
        bodies += 1
        clock.advance(1)
        if bodies == 1:
            raise ConnectionError
        await nothing()
        clock.advance(5)
        await nothing()
        raise AssertionError("the deadline is over")

    EVENTS.clear()
    with testing() as clock, pytest.raises(TimeoutError, match="longer than its deadline allows") as error:
        run(face(io, body))
    assert bodies == 2 and clock.sleeps == [0.5]
    assert [(event.kind, event.reason) for event in EVENTS] == [("retry", None), ("gave-up", "within")]
    assert error.value.__notes__ == ["retry: gave up after 2 attempts in 7.5 s (within)"]


async def nothing() -> None:
    """A moment in which a cancellation may arrive, whatever the loop."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    else:
        await trio.lowlevel.checkpoint()


def test_a_cancellation_from_outside_is_not_taken_for_a_timeout() -> None:
    async def body() -> None:
        clock.advance(5)  # the deadline of the attempt is over, and
        task.cancel()  # in the same moment somebody cancels the task
        await asyncio.Event().wait()

    async def main() -> None:
        nonlocal task
        task = asyncio.create_task(decorated(Retry(ConnectionError, each=2), body))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    task: asyncio.Task[Any]
    with testing() as clock:
        asyncio.run(main())
    assert clock.sleeps == []


def test_an_alarm_that_comes_too_late_leaves_the_task_alone() -> None:
    """The body ended just when its time was over: the task is not cancelled afterwards."""

    @Retry(ConnectionError, each=2)
    async def quick() -> str:
        clock.advance(2)  # the cancellation is scheduled, but the body ends before the loop runs again
        return "done"

    async def main() -> None:
        assert await quick() == "done"
        for _ in range(3):
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()

    with testing() as clock:
        asyncio.run(main())


def test_a_task_group_goes_on_after_a_timeout() -> None:
    @Retry(ConnectionError, each=2, attempts=2, wait=0)
    async def slow() -> None:
        clock.advance(3)
        await nothing()

    async def main() -> None:
        async with asyncio.timeout(60):
            with pytest.raises(TimeoutError):
                await slow()
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()

    with testing() as clock:
        asyncio.run(main())


# Deadlines that are handed down


def test_remaining_is_the_minimum_and_comes_back() -> None:
    assert remaining() is None and remaining(3) == 3
    with testing() as clock:
        for leave in ("return", "raise", "stop"):
            outer = Retry(KeyError, within=10, attempts=1)

            def inside(leave: str = leave) -> None:
                assert remaining() == 8 and remaining(3) == 3 and remaining(9) == 8
                with Retry(KeyError, each=5).run():
                    assert remaining() == 5
                    with Retry(KeyError, within=100).run():
                        clock.advance(1)
                        assert remaining() == 4
                    with Retry(KeyError).run():  # no deadline of its own
                        assert remaining() == 4
                    clock.advance(20)
                    assert remaining() == 0
                assert remaining() == 0
                if leave != "return":
                    raise {"raise": KeyError, "stop": KeyboardInterrupt}[leave]

            try:
                with outer.run():
                    assert remaining() == 10
                    clock.advance(2)
                    inside()
            except (KeyError, KeyboardInterrupt):
                assert leave != "return"
            assert remaining() is None


def test_an_inner_run_ends_with_the_deadline_of_the_outer() -> None:
    inner = Retry(ConnectionError, attempts=100, wait=1)
    tries = 0

    def fail() -> None:
        nonlocal tries
        tries += 1
        clock.advance(1)
        raise ConnectionError

    for face in (inner.call, lambda f: inner(f)(), lambda f: inner.replace(each=50).call(f)):
        tries = 0
        with testing() as clock, pytest.raises(ConnectionError) as error:
            Retry(KeyError, within=7).call(face, fail)
        assert tries == 4 and sum(clock.sleeps) == 3 and "(within)" in error.value.__notes__[0]


@pytest.mark.bad_input
def test_remaining_checks_its_cap() -> None:
    with pytest.raises(ValueError, match="at_most: expected a finite number"):
        remaining(-1)
    with pytest.raises(TypeError, match="at_most"):
        remaining("3")  # type: ignore[arg-type]


def test_tasks_have_their_own_deadlines() -> None:
    seen: dict[int, float | None] = {}

    async def one(k: int) -> None:
        @Retry(ConnectionError, within=k)
        async def body() -> None:
            await asyncio.sleep(0)
            seen[k] = remaining()

        await body()

    async def main() -> None:
        await asyncio.gather(*(one(k) for k in range(1, 20)))

    with testing():
        asyncio.run(main())
    assert seen == {k: k for k in range(1, 20)}
