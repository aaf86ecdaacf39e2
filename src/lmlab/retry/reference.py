"""The decision order as a plain loop over a script of outcomes: the oracle that all faces are held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor
from typing import NamedTuple


class Step(NamedTuple):
    """What an attempt does: take `takes` seconds, then end in `kind`.

    "ok", "retryable", "reject" (`Rejected`), "fatal" (an `Exception` that `on` does not cover) or "stop"
    (not an `Exception`).
    """

    kind: str
    takes: float = 0.0


class Trace(NamedTuple):
    """A run: how it ended ("ok", "fatal", "stop", or the reason of giving up), its waits and its events."""

    ended: str
    attempts: int
    sleeps: list[float]
    events: list[tuple[str, int, float | None, float, str | None]]  # kind, attempt, wait, elapsed, reason
    note: str | None


class Ledger:
    """The budget law, R <= floor(r N + B), in fractions."""

    def __init__(self, ratio: str, burst: str) -> None:
        self.ratio, self.burst, self.calls, self.retries = Fraction(ratio), Fraction(burst), 0, 0

    def spend(self) -> bool:
        granted = self.retries + 1 <= floor(self.ratio * self.calls + self.burst)
        self.retries += granted
        return granted


def trace(
    script: Sequence[Step],
    *,
    attempts: int | None,
    within: float | None,
    timed: bool,
    handed: float | None,
    wait: Callable[[int], float],
    budget: Ledger | None,
) -> Trace:
    """The run of `script`, whose last step repeats. `handed`: a deadline from outside; time starts at 0.

    `timed`: the policy has a deadline of its own, so `elapsed` counts from the start; else from the first
    failure.
    """
    if budget is not None:
        budget.calls += 1
    limit = min((t for t in (within, handed) if t is not None), default=None)
    now, start, n = 0.0, 0.0 if timed else None, 1
    sleeps: list[float] = []
    events: list[tuple[str, int, float | None, float, str | None]] = []
    while True:
        step = script[min(n, len(script)) - 1]
        now += step.takes
        if step.kind == "ok":
            if n > 1:
                events.append(("recovered", n, None, now - (start or 0.0), None))
            return Trace("ok", n, sleeps, events, None)
        if step.kind in ("fatal", "stop"):
            return Trace(step.kind, n, sleeps, events, None)
        start = now if start is None else start
        reason = None
        if n == attempts:
            reason = "attempts"
        elif limit is not None and now + wait(n) >= limit:
            reason = "within"
        elif budget is not None and not budget.spend():
            reason = "budget"
        if reason is not None:
            events.append(("gave-up", n, None, now - start, reason))
            plural = "attempt" if n == 1 else "attempts"
            note = f"retry: gave up after {n} {plural} in {now - start:.1f} s ({reason})"
            return Trace(reason, n, sleeps, events, note)
        events.append(("retry", n, wait(n), now - start, None))
        sleeps.append(wait(n))
        now += wait(n)
        n += 1
