"""What a failure leaves: the traceback of the plain call, its chain untouched, and nothing alive."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any

import pytest

from lmlab.retry import Budget, Rejected, Retry
from lmlab.retry.testing import testing

IO = Retry(ConnectionError, attempts=3, wait=1, hooks=())
POLICIES = {
    "bare": IO,
    "budget": IO.replace(budget=Budget(1, 10**6)),
    "timed": IO.replace(within=10**6),
    "predicate": IO.replace(on=lambda error: isinstance(error, ConnectionError)),
}


class Tensor:
    """Stands for what a failing frame holds."""


class Body:
    """Fails `failures` times; each time a frame holds a tensor of its own, known by a weak reference."""

    def __init__(self, failures: int, error: type[Exception] = ConnectionError) -> None:
        self.failures, self.error = failures, error
        self.tensors: list[weakref.ref[Tensor]] = []

    def __call__(self) -> int:
        tensor = Tensor()
        self.tensors.append(weakref.ref(tensor))
        if len(self.tensors) <= self.failures:
            raise self.error
        return len(self.tensors)


def block(io: Retry, f: Callable[[], int]) -> int:
    for attempt in io:
        with attempt:
            value = f()
    return value


def loop(io: Retry, f: Callable[[], int]) -> int:
    run = io.run()
    while True:
        with run:
            return f()


def decorated(io: Retry, f: Callable[[], int]) -> int:
    @io
    def wrapped() -> int:
        return f()

    return wrapped()


def called(io: Retry, f: Callable[[], int]) -> int:
    return io.call(f)


def streamed(io: Retry, f: Callable[[], int]) -> int:
    @io
    def rows(cursor: int = 0) -> Iterator[int]:
        yield f()

    return next(rows())


async def ablock(io: Retry, f: Callable[[], int]) -> int:
    async for attempt in io:
        async with attempt:
            value = f()
    return value


async def adecorated(io: Retry, f: Callable[[], int]) -> int:
    @io
    async def wrapped() -> int:
        return f()

    return await wrapped()


async def astreamed(io: Retry, f: Callable[[], int]) -> int:
    @io
    async def rows(cursor: int = 0) -> AsyncIterator[int]:
        yield f()

    return await anext(rows())


FACES = [block, loop, decorated, called, streamed, ablock, adecorated, astreamed]


def frames(error: BaseException) -> list[str]:
    names = []
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    return names


async def caught(face: Callable[..., Any], *args: Any) -> BaseException:
    try:
        result = face(*args)
        if asyncio.iscoroutine(result):
            await result
    except Exception as error:
        return error
    raise AssertionError("no error")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("error", [ConnectionError, Rejected, KeyError])
def test_frames_that_are_added(policy: str, attempts: int, error: type[Exception]) -> None:
    io = POLICIES[policy].replace(attempts=attempts)

    async def fail() -> int:
        return Body(10, error)()

    async def ablock_plain() -> None:
        async for attempt in io:
            with attempt:
                await fail()

    async def main() -> None:
        assert frames(await caught(block, io, Body(10, error))) == [
            "caught",
            "block",
            "__call__",
        ]  # as without a policy
        assert frames(await caught(loop, io, Body(10, error))) == ["caught", "loop", "__call__"]
        assert frames(await caught(ablock_plain)) == ["caught", "ablock_plain", "fail", "__call__"]
        assert len(frames(await caught(io(Body(10, error))))) == len(["caught", "__call__"]) + 1
        assert len(frames(await caught(io(fail)))) == len(["caught", "fail", "__call__"]) + 1
        assert len(frames(await caught(io.call, Body(10, error)))) <= len(["caught", "__call__"]) + 2
        assert len(frames(await caught(io.call, fail))) <= len(["caught", "fail", "__call__"]) + 2

    with testing():
        asyncio.run(main())


@pytest.mark.parametrize("face", FACES)
def test_the_chain_of_the_error_is_untouched(face: Callable[..., Any]) -> None:
    cause = KeyError("cause")

    def with_cause() -> int:
        raise ConnectionError from cause

    def bare() -> int:
        raise ConnectionError

    async def main() -> None:
        error = await caught(face, IO, with_cause)
        assert error.__cause__ is cause and error.__context__ is None and error.__suppress_context__
        error = await caught(face, IO, bare)
        assert error.__cause__ is None and error.__context__ is None and not error.__suppress_context__
        try:
            raise LookupError("around")
        except LookupError as around:
            error = await caught(face, IO, bare)
            assert error.__context__ is around

    with testing():
        asyncio.run(main())


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("face", FACES)
def test_nothing_of_a_failing_frame_stays_alive(no_gc: None, policy: str, face: Callable[..., Any]) -> None:
    io = POLICIES[policy]

    async def alive(failures: int, error: type[Exception]) -> int:
        body = Body(failures, error)
        try:
            result = face(io, body)
            if asyncio.iscoroutine(result):
                await result
        except (ConnectionError, KeyError, Rejected):
            pass
        return sum(reference() is not None for reference in body.tensors)

    async def main() -> None:
        for failures, error in ((10, ConnectionError), (2, ConnectionError), (1, KeyError), (10, Rejected)):
            assert sum([await alive(failures, error) for _ in range(250)]) == 0, (failures, error)

    with testing():
        asyncio.run(main())


def test_ctrl_c_in_the_engine_does_not_keep_the_frame(no_gc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    async def ainterrupted(*_: object) -> None:
        raise KeyboardInterrupt

    async def main(io: Retry, face: Callable[..., Any], body: Body | None = None) -> int:
        body = body or Body(5)
        try:
            result = face(io, body)
            if asyncio.iscoroutine(result):
                await result
        except KeyboardInterrupt:
            pass
        return sum(reference() is not None for reference in body.tensors)

    class Interrupted(Body):
        """Fails, and is interrupted at the second attempt."""

        def __call__(self) -> int:
            if len(self.tensors) == 1:
                raise KeyboardInterrupt
            return super().__call__()

    for face in FACES:
        with testing() as clock:
            assert asyncio.run(main(IO.replace(hooks=(interrupted,)), face)) == 0, face
            assert asyncio.run(main(IO, face, Interrupted(5))) == 0, face
            monkeypatch.setattr(clock, "pause", interrupted)
            monkeypatch.setattr(clock, "apause", ainterrupted)
            assert asyncio.run(main(IO, face)) == 0, face


def test_quiet_runs_keep_the_error() -> None:
    with testing():
        for attempt in IO.quiet():
            with attempt:
                raise ConnectionError("kept")
    assert str(attempt.error) == "kept" and attempt.n == 3 and not attempt.ok


def test_sizes() -> None:
    @IO
    def f() -> None: ...

    assert sys.getsizeof(IO.run()) <= 200
    closure = sum(sys.getsizeof(cell) for cell in f.__closure__ or ())
    assert sys.getsizeof(f) + closure + sys.getsizeof(f.__dict__) <= 1000


def test_no_frame_of_the_engine_is_held(no_gc: None) -> None:
    """After a loud failure the run object is free, although the caller's frame held it."""
    runs: list[int] = []
    io = IO.replace(attempts=1)
    for _ in range(3):
        for_run = None
        try:
            for for_run in io:
                with for_run:
                    raise ConnectionError
        except ConnectionError:
            runs.append(sys.getrefcount(for_run))
    assert runs == [2, 2, 2]
