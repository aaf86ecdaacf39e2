"""A loop's plans compiled for the exact laws: which set is drawn when, how long kept, how merged.

A generation whose plan contains all of the one before merges only what is new into what was merged already
(accumulated data then costs one set a generation, not t). Sets and models live in numbered slots that are
used again as soon as no later generation needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lmlab.autophagy.loops import Plan

REAL, KEPT = -1, -2


@dataclass(frozen=True)
class Step:
    """One set, in the order of merging.

    source: the slot of the model that draws it, REAL for the real law, KEPT for a set taken from `slot`.
    slot: where a drawn set is kept, −1: nowhere. share, cross: with V the weight merged so far and
    w = n·weight, w/(V + w) and V·w/(V + w): mean += share·Δ, scatter += weight·S + cross·ΔΔᵀ.
    """

    n: int
    weight: float
    source: int
    slot: int
    share: float
    cross: float


@dataclass(frozen=True)
class Generation:
    """onto: go on from the last generation's merged sets. slot: where the model is kept, −1: nowhere."""

    onto: bool
    steps: tuple[Step, ...]
    denominator: float
    slot: int


@dataclass(frozen=True)
class Program:
    generations: tuple[Generation, ...]
    set_slots: int
    model_slots: int


class _Slots:
    """Slots handed out smallest first, and taken back."""

    def __init__(self) -> None:
        self.free: list[int] = []
        self.size = 0
        self.held: dict[object, int] = {}

    def take(self, name: object) -> int:
        if self.free:
            slot = self.free.pop()
        else:
            slot = self.size
            self.size += 1
        self.held[name] = slot
        return slot

    def release(self, name: object) -> None:
        self.free.append(self.held.pop(name))


def compile_plans(plans: Sequence[Plan], ddof: int) -> Program:
    """The steps of all generations. The plans must have been checked by `loops.schedule`."""
    # Parts that a generation touches one by one: all, or only the new ones where it goes on from the last.
    onto = [False]
    touched = [plans[0].parts]
    for before, plan in pairwise(plans):
        old, new = set(before.parts), set(plan.parts)
        onto.append(old < new)
        touched.append(tuple(part for part in plan.parts if part not in old) if old < new else plan.parts)

    set_first: dict[tuple[int, int], int] = {}
    set_last: dict[tuple[int, int], int] = {}
    model_last: dict[int, int] = {}
    for t, parts in enumerate(touched):
        for part in parts:
            name = (part.born, part.model)
            set_first.setdefault(name, t)
            set_last[name] = t
            if set_first[name] == t and part.model > 0:
                model_last[part.model] = t

    sets, models = _Slots(), _Slots()
    generations: list[Generation] = []
    v1 = v2 = 0.0
    for t, parts in enumerate(touched):
        if not onto[t]:
            v1 = v2 = 0.0
        steps: list[Step] = []
        for part in parts:
            name = (part.born, part.model)
            mass = part.n * part.weight
            share, cross = mass / (v1 + mass), v1 * mass / (v1 + mass)
            v1 += mass
            v2 += mass * part.weight
            if set_first[name] < t:
                source, slot = KEPT, sets.held[name]
            else:
                source = REAL if part.model == 0 else models.held[part.model]
                slot = sets.take(name) if set_last[name] > t else -1
            steps.append(Step(part.n, part.weight, source, slot, share, cross))
        for part in parts:
            name = (part.born, part.model)
            if name in sets.held and set_last[name] == t:
                sets.release(name)
            if part.model in models.held and model_last[part.model] == t:
                models.release(part.model)
        denominator = v1 - v2 / v1 if ddof else v1
        if plans[t].rows < 2:
            raise ValueError(f"a Gaussian needs n >= 2 rows at each generation, got 1 at generation {t + 1}")
        slot = models.take(t + 1) if model_last.get(t + 1, -1) > t else -1
        generations.append(Generation(onto[t], tuple(steps), denominator, slot))
    return Program(tuple(generations), sets.size, models.size)
