"""Tests without sleeping: `with testing() as clock:` replaces the time of the whole engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from threading import Lock

from lmlab.retry import clock as time


class FakeClock(time.Clock):
    """Time that passes only when somebody sleeps or calls `advance`.

    `sleeps`: the waits of all faces, in order. `now`: seconds. Safe in threads.
    """

    def __init__(self, now: float = 0.0, *, jitter: float = 1.0, attempts: int | None = None) -> None:
        self.sleeps: list[float] = []
        self.now = now
        self.jitter = jitter
        self.attempts = attempts
        self._timers: list[_FakeTimer] = []
        self._lock = Lock()

    def advance(self, seconds: float) -> None:
        """Let time pass: deadlines that it reaches stop their asynchronous attempts."""
        with self._lock:
            self.now += seconds
            reached = [timer for timer in self._timers if timer.end <= self.now]
            self._timers = [timer for timer in self._timers if timer.end > self.now]
        for timer in reached:
            timer.start()

    def read(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.advance(seconds)

    async def apause(self, seconds: float) -> None:
        self.pause(seconds)
        # Other tasks get their turn, and a cancellation its moment, as in a real sleep.
        await super().apause(0)

    def due(self, seconds: float) -> float:
        self.pause(seconds)
        return self.now

    def until(self, end: float) -> float | None:
        return 0.0 if end <= self.now else None

    def timer(
        self,
        end: float,
        fire: Callable[[], None],
        later: Callable[[float, Callable[[], None]], time.Timer],
    ) -> time.Timer:
        timer = _FakeTimer(end, fire, later)
        if end <= self.now:
            timer.start()
        else:
            with self._lock:
                self._timers.append(timer)
        return timer


class _FakeTimer:
    def __init__(
        self,
        end: float,
        fire: Callable[[], None],
        later: Callable[[float, Callable[[], None]], time.Timer],
    ) -> None:
        self.end = end
        self._fire: Callable[[], None] | None = fire
        self._later = later
        self._started: time.Timer | None = None

    def start(self) -> None:
        if self._fire is not None:
            self._started = self._later(0, self._fire)

    def cancel(self) -> None:
        self._fire = None
        if self._started is not None:
            self._started.cancel()


@contextlib.contextmanager
def testing(*, jitter: float = 1.0, attempts: int | None = None) -> Iterator[FakeClock]:
    """In the block, all faces in this process live on a `FakeClock`: nothing sleeps.

    `jitter` replaces the random u of `backoff`, so waits are exact; `attempts` caps the attempts of every
    policy. Blocks nest: the inner one starts at the outer one's time.
    """
    outer = time.active
    now = outer.now if isinstance(outer, FakeClock) else 0.0
    inner = FakeClock(now, jitter=jitter, attempts=attempts)
    time.active = inner
    try:
        yield inner
    finally:
        time.active = outer


testing.__test__ = False  # type: ignore[attr-defined]  # its name looks like a test to pytest
