"""Deadlines: how much time is left to the code that runs now, and how a task is stopped when it is over."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from lmlab.retry import clock
from lmlab.retry.wait import number

# The innermost effective deadline, on the engine's clock. Threads started by hand don't inherit it.
current: ContextVar[float | None] = ContextVar("lmlab.retry.deadline", default=None)


def remaining(at_most: float | None = None) -> float | None:
    """Seconds left to the innermost deadline (over `each`, `within` and every enclosing run), never negative.

    None if there is none. `at_most` caps the answer: `urlopen(url, timeout=remaining(30))`.
    """
    if at_most is not None:
        number("at_most", at_most)
    end = current.get()
    if end is None:
        return at_most
    left = max(0.0, end - clock.active.read())
    return left if at_most is None else min(left, at_most)


def earliest(*ends: float | None) -> float | None:
    """The first of several ends, None being never."""
    return min((end for end in ends if end is not None), default=None)


class AsyncioAlarm:
    """Cancels the current task at `end`; `off` tells whether the cancellation that came out was its own."""

    __slots__ = ("_cancelling", "_fired", "_loop", "_task", "_timer")

    def __init__(self, end: float) -> None:
        import asyncio

        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an attempt with `within` or `each` must run in a task of asyncio or trio")
        self._task = task
        self._cancelling = task.cancelling()
        self._fired = False
        self._loop = asyncio.get_running_loop()
        self._timer: clock.Timer = clock.active.timer(end, self._fire, self._later)

    def _later(self, delay: float, fire: Callable[[], None]) -> clock.Timer:
        return self._loop.call_later(delay, fire) if delay else self._loop.call_soon(fire)

    def _fire(self) -> None:
        self._fired = True
        self._task.cancel()

    def off(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._timer.cancel()
        if not self._fired:
            return False
        import asyncio

        # Someone else may have cancelled the task as well: then the cancellation is theirs and goes on.
        mine = self._task.uncancel() <= self._cancelling
        return mine and isinstance(error, asyncio.CancelledError)


class TrioAlarm:
    """The same with a cancel scope of trio."""

    __slots__ = ("_scope", "_timer", "_trio")

    def __init__(self, end: float, trio: Any) -> None:
        self._trio = trio
        self._scope = trio.CancelScope()
        self._timer = clock.active.timer(end, self._fire, self._later)
        self._scope.__enter__()

    def _fire(self) -> None:
        self._scope.cancel()

    def _later(self, delay: float, fire: Callable[[], None]) -> clock.Timer:
        self._scope.deadline = self._trio.current_time() + delay
        return _Nothing()

    def off(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._timer.cancel()
        self._scope.__exit__(kind, error, traceback)  # True also where there was nothing to catch
        return bool(self._scope.cancelled_caught)


class _Nothing:
    """A timer that ends with its scope."""

    def cancel(self) -> None:
        return None


def alarm(end: float) -> AsyncioAlarm | TrioAlarm:
    """Stop the running task at `end`."""
    trio = clock.running_trio()
    return AsyncioAlarm(end) if trio is None else TrioAlarm(end, trio)
