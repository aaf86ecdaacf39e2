"""From numbers to places on a chart: domains, round ticks, linear and logarithmic."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lmlab.lab.report.text import finite, short

TINY = 1e-300  # a range below it has no decimal ticks


@dataclass(frozen=True)
class Axis:
    """What an axis shows. `low`, `high`: numbers that must lie on it; `at`: ticks, None for round ones."""

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    at: Sequence[float] | None = None
    form: Callable[[float], str] = short


@dataclass(frozen=True)
class Scale:
    """A fitted axis: `place` maps a number to 0 … 1."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        if self.log:
            value = max(value, self.low)  # what a logarithm can't show lies on the edge
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def fit(axis: Axis, values: Iterable[float | None]) -> Scale:
    """The scale that holds all the values, the axis' own bounds and, on a linear axis, whole ticks."""
    known = [v for v in map(finite, (*values, axis.low, axis.high, *(axis.at or ()))) if v is not None]
    if axis.log:
        known = [v for v in known if v > 0]
        low, high = min(known, default=1.0), max(known, default=10.0)
        if low == high:
            low, high = low / 2, high * 2
        ticks = axis.at if axis.at is not None else _powers(low, high)
        return Scale(low, high, True, tuple(t for t in ticks if low <= t <= high))
    low, high = min(known, default=0.0), max(known, default=1.0)
    if high - low < TINY:
        room = abs(low) / 10 or 1.0
        low, high = (low if axis.low is not None else low - room), high + room
    if axis.at is not None:
        return Scale(low, high, False, tuple(axis.at))
    step = _round_step((high - low) / 5)
    # A bound that was asked for is kept; the other end grows to the next whole tick.
    first = low if axis.low == low else math.floor(low / step + 1e-9) * step
    last = high if axis.high == high else math.ceil(high / step - 1e-9) * step
    start = math.ceil(first / step - 1e-9)
    return Scale(
        first, last, False, tuple(step * i for i in range(start, math.floor(last / step + 1e-9) + 1))
    )


def _round_step(width: float) -> float:
    power = 10.0 ** math.floor(math.log10(width))
    return next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= width * 0.999)


def _powers(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    return [s * 10.0**e for e in range(first, last + 1) for s in steps]
