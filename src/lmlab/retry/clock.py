"""The time that the engine lives in: real time, or that of a test (`lmlab.retry.testing`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Protocol

    class Timer(Protocol):
        """What a scheduled call leaves in the hand."""

        def cancel(self) -> None: ...


class Clock:
    """Real time. The faces of the engine read, wait and draw through `active` only."""

    jitter: float | None = None  # in place of u, where a test wants exact waits
    attempts: int | None = None  # caps the attempts of every policy

    def read(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Sleep in a thread."""
        time.sleep(seconds)

    async def apause(self, seconds: float) -> None:
        """Sleep in a task, of asyncio or of trio: whichever runs."""
        if (trio := running_trio()) is not None:
            await trio.sleep(seconds)
        else:
            import asyncio

            await asyncio.sleep(seconds)

    def due(self, seconds: float) -> float:
        """The time at which a wait of `seconds` that starts now is over; the caller does not sleep."""
        return self.read() + seconds

    def until(self, end: float) -> float | None:
        """Seconds of real waiting until `end`; None: time does not pass by itself (in a test)."""
        return max(0.0, end - self.read())

    def timer(
        self, end: float, fire: Callable[[], None], later: Callable[[float, Callable[[], None]], Timer]
    ) -> Timer:
        """Call `fire` at `end` through `later(delay, fire)` of the running event loop."""
        return later(max(0.0, end - self.read()), fire)


active: Clock = Clock()


def running_trio() -> Any:
    """The trio module if its loop runs the caller, else None; trio is never imported for this."""
    trio = sys.modules.get("trio")
    if trio is not None:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            return None
    return trio
