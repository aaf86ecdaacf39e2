"""What a generation is trained on: each loop is a pure function from the generation to a list of sets.

A set is named by (born, model): rows that model `model` made at generation `born`; model 0 is the real law.
A set that is named again is the same rows again. Generation 1 sees real data only.

Source: Alemohammad et al., Self-Consuming Generative Models Go MAD, arXiv 2307.01850 (fully synthetic,
synthetic augmentation, fresh data); accumulate and subsample follow the later literature on keeping data.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Part:
    """`n` rows made at generation `born` by model `model` (0: real), each with weight `weight` in the fit."""

    n: int
    model: int
    born: int
    weight: float = 1.0


@dataclass(frozen=True)
class Plan:
    """The sets of one D_t: real first, then by `born`, then newest model first.

    `budget`: so many rows, taken uniformly without replacement from all of them; None: all rows.
    """

    parts: tuple[Part, ...]
    budget: int | None = None

    @property
    def rows(self) -> int:
        """N, the number of rows that the model is trained on."""
        return sum(part.n for part in self.parts) if self.budget is None else self.budget


@runtime_checkable
class Loop(Protocol):
    """Anything with a pure `plan(t)`, t from 1."""

    def plan(self, t: int) -> Plan: ...


def _whole(loop: object, name: str, least: int) -> None:
    """Make the field `name` of a frozen loop an int that is at least `least`, or None where it may be."""
    given = getattr(loop, name)
    try:
        value = operator.index(given)
    except TypeError:
        value = least - 1
    if isinstance(given, bool) or value < least:
        kind = type(loop).__name__
        raise ValueError(f"{kind}: {name} must be a whole number >= {least}, got {given!r}")
    object.__setattr__(loop, name, value)


def _share(loop: object, name: str, *, ends: bool) -> None:
    """Check that the field `name` is a number in [0, 1], or in (0, 1) without the ends."""
    given = getattr(loop, name)
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not (0.0 <= value <= 1.0 if ends else 0.0 < value < 1.0):
        interval = "[0, 1]" if ends else "(0, 1)"
        raise ValueError(f"{type(loop).__name__}: {name} must be a number in {interval}, got {given!r}")
    object.__setattr__(loop, name, value)


def _first(n: int) -> Plan:
    return Plan((Part(n, 0, 1),))


def _sets(*parts: Part) -> tuple[Part, ...]:
    return tuple(part for part in parts if part.n > 0)


@dataclass(frozen=True)
class Synthetic:
    """Fully synthetic: model t is trained on `n_synth` rows of model t − 1 and nothing else."""

    n_synth: int
    n_initial: int | None = None

    def __post_init__(self) -> None:
        _whole(self, "n_synth", 1)
        if self.n_initial is not None:
            _whole(self, "n_initial", 1)

    def plan(self, t: int) -> Plan:
        if t == 1:
            return _first(self.n_synth if self.n_initial is None else self.n_initial)
        return Plan((Part(self.n_synth, t - 1, t),))


@dataclass(frozen=True)
class Augmentation:
    """Synthetic augmentation: the same `n_real` real rows always, and `n_synth` rows of model t − 1."""

    n_real: int
    n_synth: int

    def __post_init__(self) -> None:
        _whole(self, "n_real", 1)
        _whole(self, "n_synth", 0)

    def plan(self, t: int) -> Plan:
        if t == 1:
            return _first(self.n_real)
        return Plan(_sets(Part(self.n_real, 0, 1), Part(self.n_synth, t - 1, t)))


@dataclass(frozen=True)
class Fresh:
    """Fresh data: `n_real` new real rows at each generation, and `n_synth` rows of model t − 1."""

    n_real: int
    n_synth: int
    n_initial: int | None = None

    def __post_init__(self) -> None:
        _whole(self, "n_real", 0)
        _whole(self, "n_synth", 0)
        if self.n_initial is not None:
            _whole(self, "n_initial", 1)
        elif self.n_real == 0:
            raise ValueError("Fresh: n_initial must be given when n_real is 0: Fresh(0, 100, n_initial=100)")
        if self.n_real + self.n_synth == 0:
            raise ValueError("Fresh: n_real + n_synth must be at least 1, got 0 + 0")

    def plan(self, t: int) -> Plan:
        if t == 1:
            return _first(self.n_real if self.n_initial is None else self.n_initial)
        return Plan(_sets(Part(self.n_real, 0, t), Part(self.n_synth, t - 1, t)))


@dataclass(frozen=True)
class Accumulate:
    """Data is kept: the first real rows, and `n_synth` rows of every model so far."""

    n_synth: int
    n_initial: int | None = None

    def __post_init__(self) -> None:
        _whole(self, "n_synth", 1)
        if self.n_initial is not None:
            _whole(self, "n_initial", 1)

    def plan(self, t: int) -> Plan:
        first = self.n_synth if self.n_initial is None else self.n_initial
        return Plan((Part(first, 0, 1), *(Part(self.n_synth, born - 1, born) for born in range(2, t + 1))))


@dataclass(frozen=True)
class Subsample:
    """Data is kept, but a model sees only `budget` rows of it (all, while there are fewer).

    The rows are taken uniformly without replacement, anew at each generation. None: `n_synth` rows.
    """

    n_synth: int
    budget: int | None = None
    n_initial: int | None = None

    def __post_init__(self) -> None:
        _whole(self, "n_synth", 1)
        for name in ("budget", "n_initial"):
            if getattr(self, name) is not None:
                _whole(self, name, 1)

    def plan(self, t: int) -> Plan:
        kept = Accumulate(self.n_synth, self.n_initial).plan(t)
        budget = self.n_synth if self.budget is None else self.budget
        return Plan(kept.parts, min(budget, kept.rows))


@dataclass(frozen=True)
class Contamination:
    """`n` rows at each generation: the share `synthetic` made by model t − 1, the rest new and real."""

    n: int
    synthetic: float

    def __post_init__(self) -> None:
        _whole(self, "n", 1)
        _share(self, "synthetic", ends=True)

    def plan(self, t: int) -> Plan:
        n_synth = math.floor(self.n * self.synthetic + 0.5)
        return Fresh(self.n - n_synth, n_synth, n_initial=self.n).plan(t)


@dataclass(frozen=True)
class Memory:
    """The synthetic rows of `loop` come from the last `k` models in equal parts, not from the last alone."""

    loop: Loop
    k: int

    def __post_init__(self) -> None:
        _whole(self, "k", 1)
        if any(isinstance(inner, Memory) for inner in chain(self.loop)):
            raise ValueError(
                f"Memory: loop has a memory already, got {self.loop!r}; give one Memory(loop, k)"
            )

    def plan(self, t: int) -> Plan:
        plan = self.loop.plan(t)
        parts: list[Part] = []
        for part in plan.parts:
            if part.model == 0:
                parts.append(part)
                continue
            m = min(self.k, part.model)
            each, more = divmod(part.n, m)
            parts += [
                replace(part, n=each + (back < more), model=part.model - back)
                for back in range(m)
                if each + (back < more) > 0
            ]
        return Plan(tuple(parts), plan.budget)


@dataclass(frozen=True)
class Weighted:
    """Rows of `loop` weighted so that the real ones have the share `w` of all weight; mean weight is 1.

    A generation that has rows of only one kind is left alone.
    """

    loop: Loop
    w: float

    def __post_init__(self) -> None:
        _share(self, "w", ends=False)
        if any(isinstance(inner, Subsample) for inner in chain(self.loop)):
            raise ValueError(
                f"Weighted: a subsample has no fixed number of real rows to weight, got {self.loop!r}; "
                "weight Accumulate instead"
            )

    def plan(self, t: int) -> Plan:
        plan = self.loop.plan(t)
        real = sum(part.n for part in plan.parts if part.model == 0)
        rows = sum(part.n for part in plan.parts)
        if real in (0, rows):
            return plan
        weights = ((1.0 - self.w) * rows / (rows - real), self.w * rows / real)
        return Plan(tuple(replace(part, weight=weights[part.model == 0]) for part in plan.parts), plan.budget)


@dataclass(frozen=True)
class RealOnly:
    """The control of `loop`: as many rows at each generation, all of them new and real."""

    loop: Loop

    def plan(self, t: int) -> Plan:
        return Plan((Part(self.loop.plan(t).rows, 0, t),))


def chain(loop: Any) -> list[Any]:
    """`loop` and the loops inside it, up to one that no longer shows what is inside (RealOnly)."""
    found = [loop]
    while isinstance(found[-1], Memory | Weighted):
        found.append(found[-1].loop)
    return found


def schedule(loop: Loop, generations: int) -> list[Plan]:
    """The plans of generations 1 … `generations`, checked: a loop of the user's own may be wrong.

    Raises ValueError "loop … at t=…": a model that doesn't exist yet, a set named twice or with another n, …
    """
    sizes: dict[tuple[int, int], int] = {}
    plans: list[Plan] = []
    for t in range(1, generations + 1):
        plan = loop.plan(t)
        seen: set[tuple[int, int]] = set()

        def wrong(what: str, t: int = t) -> ValueError:
            return ValueError(f"loop {loop!r} at t={t}: {what}")

        if not plan.parts:
            raise wrong("the plan has no rows")
        for part in plan.parts:
            name = (part.born, part.model)
            if not 1 <= part.born <= t:
                raise wrong(f"{part} is born later than t or before 1")
            if not 0 <= part.model < part.born:
                raise wrong(
                    f"{part} needs model {part.model}, which does not exist at generation {part.born}"
                )
            if part.n < 1 or not (math.isfinite(part.weight) and part.weight > 0):
                raise wrong(f"{part} must have n >= 1 and a positive, finite weight")
            if name in seen:
                raise wrong(f"set (born {part.born}, model {part.model}) is named twice")
            if sizes.setdefault(name, part.n) != part.n:
                raise wrong(
                    f"set (born {part.born}, model {part.model}) has n={part.n}, had {sizes[name]} before"
                )
            seen.add(name)
        if plan.budget is not None and not 1 <= plan.budget <= sum(part.n for part in plan.parts):
            raise wrong(f"budget {plan.budget} is not between 1 and the number of rows")
        plans.append(plan)
    return plans
