"""How long to wait: exponential backoff with full jitter, never earlier than the server asked for."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

from lmlab.retry import clock

if TYPE_CHECKING:
    import random

# A private stream, made at the first draw and seeded by the system: users seed the global one alike in every
# worker, and a herd would stay a herd.
_stream: random.Random | None = None


def _uniform() -> float:
    global _stream
    stream = _stream
    if stream is None:
        import random  # here, for a quick import of the room

        stream = _stream = random.Random()
    return stream.random()


def _in_child() -> None:
    global _stream
    _stream = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def number(name: str, value: object, least: float = 0.0) -> float:
    """`value` as a finite float >= `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number of seconds, got {value!r}")
    if not (least <= value < math.inf):
        raise ValueError(f"{name}: expected a finite number >= {least:g}, got {value!r}")
    return float(value)


class Backoff:
    """The callable that `backoff` makes; equal numbers make equal, picklable objects."""

    __slots__ = ("_numbers",)

    _numbers: tuple[float, float, float, bool]

    def __init__(self, base: float, cap: float, factor: float, jitter: bool) -> None:
        self._numbers = (
            number("base", base),
            number("cap", cap),
            number("factor", factor, least=1.0),
            bool(jitter),
        )

    def __call__(self, n: int, error: Exception) -> float:
        base, cap, factor, jitter = self._numbers
        try:
            most = min(cap, base * factor ** (n - 1))
        except OverflowError:
            most = cap if base else 0.0
        if jitter:
            most *= _uniform() if clock.active.jitter is None else clock.active.jitter
        return most + asked(error)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backoff) and self._numbers == other._numbers

    def __hash__(self) -> int:
        return hash(self._numbers)

    def __repr__(self) -> str:
        base, cap, factor, jitter = self._numbers
        return f"backoff({base:g}, cap={cap:g}, factor={factor:g}, jitter={jitter})"


def backoff(base: float = 0.1, *, cap: float = 10.0, factor: float = 2.0, jitter: bool = True) -> Backoff:
    """Waits u min(cap, base factor^(n-1)) seconds after failure n, u uniform in [0, 1): full jitter.

    Where the server asked for `a` seconds (`error.after`, or a Retry-After header in `error.headers` or
    `error.response.headers`), `a` is added: never earlier than asked, and not all at once. With
    `jitter=False`, u = 1.
    """
    return Backoff(base, cap, factor, jitter)


def asked(error: Exception) -> float:
    """The seconds for which the server asked to be left alone; 0 where it did not."""
    after = getattr(error, "after", None)
    if after is None:
        for holder in (error, getattr(error, "response", None)):
            after = _header(getattr(holder, "headers", None))
            if after is not None:
                break
    if isinstance(after, str):
        after = _seconds(after)
    if isinstance(after, bool) or not isinstance(after, (int, float)) or not (0 <= after < math.inf):
        return 0.0
    return float(after)


def _header(headers: Any) -> Any:
    get = getattr(headers, "get", None)
    if get is None:
        return None
    found = get("Retry-After")
    return get("retry-after") if found is None else found


def _seconds(text: str) -> float | None:
    """Retry-After is a number of seconds or an HTTP date."""
    try:
        return float(text)
    except ValueError:
        from email.utils import mktime_tz, parsedate_tz

        parsed = parsedate_tz(text)
        return None if parsed is None else max(0.0, mktime_tz(parsed) - time.time())
