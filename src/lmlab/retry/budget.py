"""A budget of retries: at every instant R <= floor(r N + B), an exact statement about integers."""

from __future__ import annotations

import itertools
import math
import os
import sys
import weakref
from _thread import LockType, allocate_lock  # those of threading, without its import
from collections.abc import Callable, Iterator
from typing import Any


def exact(name: str, value: float) -> tuple[int, int]:
    """The fraction (numerator, denominator) of the decimal text of `value`: 0.1 is 1/10."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}. Right: Budget(ratio=0.1, burst=10)")
    if not (0 <= value < math.inf):
        raise ValueError(
            f"{name}: expected a finite number >= 0, got {value!r}. Right: Budget(0.1, burst=10)"
        )
    digits, _, exponent = repr(value).partition("e")
    whole, _, decimals = digits.partition(".")
    shift = int(exponent or 0) - len(decimals)
    numerator = int(whole + decimals) * 10 ** max(shift, 0)
    denominator = 10 ** max(-shift, 0)
    common = math.gcd(numerator, denominator)
    return numerator // common, denominator // common


class Cells:
    """A counter without a lock for builds without the GIL: each thread counts in a cell of its own."""

    def __init__(self) -> None:
        from threading import local

        self._mine = local()
        self._all: list[list[int]] = []
        self.ticks: Iterator[object] = iter(self.tick, self)  # `next` takes a tick

    def tick(self) -> None:
        try:
            self._mine.cell[0] += 1
        except AttributeError:
            self._mine.cell = [1]
            self._all.append(self._mine.cell)

    def total(self) -> int:
        return sum(cell[0] for cell in self._all)


class Ticks:
    """A counter without a lock under the GIL: `next` of an `itertools.count` is one atomic step.

    Such a count can't be looked at without taking a tick, so `total` takes one and remembers it; its
    callers hold the budget's lock.
    """

    def __init__(self) -> None:
        self.ticks = itertools.count()
        self.tick: Callable[[], int] = self.ticks.__next__
        self._looks = 0

    def total(self) -> int:
        looks, self._looks = self._looks, self._looks + 1
        return self.tick() - looks


def counter() -> Ticks | Cells:
    """The counter that fits this build of Python."""
    return Ticks() if getattr(sys, "_is_gil_enabled", lambda: True)() else Cells()


_budgets: weakref.WeakSet[Budget] = weakref.WeakSet()


class Budget:
    """Retries in proportion to traffic: of N calls begun, at most floor(ratio N + burst) retries are granted.

    The law holds at every instant, under any interleaving of the threads and tasks of a process. `ratio`
    and `burst` are taken as the exact fractions of their decimal text. A copy is the same budget, a pickle
    has the same numbers and fresh counts, and a forked child starts at zero.

    Raises `ValueError` for a negative, infinite or NaN number.
    """

    __slots__ = (
        "__weakref__",
        "_base",
        "_begun",
        "_law",
        "_lock",
        "_refused",
        "_retries",
        "_tick",
        "burst",
        "ratio",
    )

    ratio: float
    burst: float

    def __init__(self, ratio: float = 0.1, burst: float = 10) -> None:
        (r, r_den), (b, b_den) = exact("ratio", ratio), exact("burst", burst)
        set_ = object.__setattr__
        set_(self, "ratio", ratio)
        set_(self, "burst", burst)
        # R <= floor(r N + B)  <=>  den R <= num N + first, in integers
        set_(self, "_law", (r * b_den, b * r_den, r_den * b_den))
        begun = counter()
        set_(self, "_begun", begun)
        set_(self, "_tick", begun.tick)  # what the engine calls: `begin` without a Python frame
        self._restart()
        _budgets.add(self)

    def _restart(self) -> None:
        set_ = object.__setattr__
        set_(self, "_lock", allocate_lock())
        set_(self, "_base", self._begun.total())
        set_(self, "_retries", 0)
        set_(self, "_refused", 0)

    _begun: Ticks | Cells
    _law: tuple[int, int, int]
    _lock: LockType
    _base: int
    _retries: int
    _refused: int
    _tick: Callable[[], object]

    def begin(self) -> None:
        """Count a call. Takes no lock; the engine does it once a run."""
        self._tick()

    def spend(self) -> bool:
        """Ask for one retry: True grants it and counts it, False counts a refusal."""
        num, first, den = self._law
        with self._lock:
            # A call that begins after this look only makes the answer stricter: the law still holds.
            granted = den * (self._retries + 1) <= num * (self._begun.total() - self._base) + first
            if granted:
                object.__setattr__(self, "_retries", self._retries + 1)
            else:
                object.__setattr__(self, "_refused", self._refused + 1)
        return granted

    @property
    def calls(self) -> int:
        """Calls begun, exactly."""
        with self._lock:
            return self._begun.total() - self._base

    @property
    def retries(self) -> int:
        """Retries granted."""
        return self._retries

    @property
    def refused(self) -> int:
        """Retries refused."""
        return self._refused

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Budget is read-only; make another: Budget({self.ratio}, burst={self.burst})")

    def __copy__(self) -> Budget:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Budget:
        return self

    def __reduce__(self) -> tuple[type[Budget], tuple[float, float]]:
        return type(self), (self.ratio, self.burst)

    def __repr__(self) -> str:
        return f"Budget({self.ratio}, burst={self.burst})"


def _in_child() -> None:
    for budget in list(_budgets):
        budget._restart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
