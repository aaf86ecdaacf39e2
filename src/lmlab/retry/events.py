"""What hooks get, and two hooks that are ready: the log and the counters."""

from __future__ import annotations

import os
import weakref
from _thread import allocate_lock  # threading.Lock, without the import of threading
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Event(NamedTuple):
    """A retry was scheduled, a run recovered after one or more retries, or a run gave up."""

    kind: str  # "retry" | "recovered" | "gave-up"
    name: str  # the policy's name, else the function's qualified name, else "block"
    attempt: int  # number of the attempt that failed or recovered
    error: Exception | None  # None for "recovered"
    wait: float | None  # seconds until the next attempt; only of "retry"
    elapsed: float  # seconds since the run began (without deadlines: since its first failure)
    reason: str | None  # of "gave-up": "attempts" | "within" | "budget" | "kills"


def log(event: Event) -> None:
    """The default hook: warnings and notes of the logger "lmlab.retry"."""
    import logging

    # The error goes into the record as text: a record that is kept would keep the failing frames alive.
    logger = logging.getLogger("lmlab.retry")
    error = event.error
    what = f"{type(error).__name__}: {error}"
    if event.kind == "retry":
        logger.warning(
            "%s: attempt %d failed (%s), next in %.3g s", event.name, event.attempt, what, event.wait
        )
    elif event.kind == "gave-up":
        logger.warning(
            "%s: gave up after %s in %.1f s (%s): %s",
            *(event.name, attempts(event.attempt), event.elapsed, event.reason, what),
        )
    else:
        logger.info("%s: recovered at attempt %d after %.1f s", event.name, event.attempt, event.elapsed)


def attempts(n: int) -> str:
    """`n` with its noun."""
    return "1 attempt" if n == 1 else f"{n} attempts"


def fire(hooks: Iterable[Callable[[Event], None]], event: Event) -> None:
    """Call the hooks in order. One that raises an `Exception` is logged and changes nothing."""
    for hook in hooks:
        try:
            hook(event)
        except Exception:
            import logging

            logging.getLogger("lmlab.retry").exception("the hook %r raised and was passed over", hook)


_counters: weakref.WeakSet[Counters] = weakref.WeakSet()


class Counters:
    """A hook that counts by name: `counters = Counters(); io = Retry(OSError, hooks=(log, counters))`.

    `retries`, `recovered` and `gave_up` map a name to a number of events, `slept` to the seconds of waiting
    that were scheduled. Safe in threads; a copy by pickle starts empty.
    """

    def __init__(self) -> None:
        self.retries: dict[str, int] = {}
        self.recovered: dict[str, int] = {}
        self.gave_up: dict[str, int] = {}
        self.slept: dict[str, float] = {}
        self._lock = allocate_lock()
        _counters.add(self)

    def __call__(self, event: Event) -> None:
        counts = {"retry": self.retries, "recovered": self.recovered, "gave-up": self.gave_up}[event.kind]
        with self._lock:
            counts[event.name] = counts.get(event.name, 0) + 1
            if event.wait is not None:
                self.slept[event.name] = self.slept.get(event.name, 0.0) + event.wait

    def __reduce__(self) -> tuple[type[Counters], tuple[()]]:
        return type(self), ()


def _in_child() -> None:
    for counters in list(_counters):
        counters._lock = allocate_lock()  # the parent's may have been held at the fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
