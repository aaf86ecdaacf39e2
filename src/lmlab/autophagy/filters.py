"""Choosing among synthetic rows before they are trained on: the person in the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


class FilterExhausted(RuntimeError):
    """`Verify` drew `rounds` times and still had too few accepted rows."""

    def __init__(self, accepted: int, wanted: int, rounds: int) -> None:
        super().__init__(accepted, wanted, rounds)
        self.accepted, self.wanted, self.rounds = accepted, wanted, rounds

    def __str__(self) -> str:
        return (
            f"Verify: {self.accepted} rows accepted of {self.wanted} wanted after {self.rounds} rounds; "
            "accept more, or raise max_rounds"
        )


@runtime_checkable
class Filter(Protocol):
    """Gives exactly `n` rows, made from what `draw(m)` (m new rows) gives."""

    def __call__(self, draw: Callable[[int], np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray: ...


@dataclass(frozen=True)
class BestOf:
    """One row from each of n groups of `k` draws, with P ∝ exp(reward/temperature): K-wise Bradley–Terry.

    temperature 0 takes the best, the first on ties. `reward`: rows -> `[n]` finite numbers.
    """

    k: int
    reward: Callable[[np.ndarray], np.ndarray]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.k < 1 or not 0.0 <= self.temperature < np.inf:
            raise ValueError(
                f"BestOf: k must be >= 1, temperature finite and >= 0, got {self.k!r}, {self.temperature!r}"
            )

    def __call__(self, draw: Callable[[int], np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
        rows = draw(n * self.k)
        reward = np.asarray(self.reward(rows), dtype=np.float64)
        if reward.shape != (n * self.k,) or not np.isfinite(reward).all():
            raise ValueError(
                f"BestOf: reward must give {n * self.k} finite numbers, one a row, got shape {reward.shape}"
            )
        reward = reward.reshape(n, self.k)
        if self.temperature > 0:
            # The largest of r/T + Gumbel noise is distributed as softmax(r/T).
            reward = reward / self.temperature - np.log(rng.exponential(size=reward.shape))
        return np.asarray(rows[np.arange(n) * self.k + reward.argmax(axis=1)])


@dataclass(frozen=True)
class Verify:
    """Keeps only rows that `accept` passes (rows -> bool `[n]`), and draws on until there are n."""

    accept: Callable[[np.ndarray], np.ndarray]
    max_rounds: int = 100

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise ValueError(f"Verify: max_rounds must be >= 1, got {self.max_rounds!r}")

    def __call__(self, draw: Callable[[int], np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
        kept: list[np.ndarray] = []
        have = 0
        for _ in range(self.max_rounds):
            rows = draw(n)
            passed = np.asarray(self.accept(rows))
            if passed.shape != (n,) or passed.dtype != np.bool_:
                raise ValueError(
                    f"Verify: accept must give bool [{n}], one a row, got {passed.dtype} {passed.shape}"
                )
            kept.append(rows[passed])
            have += int(passed.sum())
            if have >= n:
                return np.concatenate(kept)[:n]
        raise FilterExhausted(have, n, self.max_rounds)


@dataclass(frozen=True)
class Correct:
    """Every row is put right by `correct` (rows -> as many rows)."""

    correct: Callable[[np.ndarray], np.ndarray]

    def __call__(self, draw: Callable[[int], np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(self.correct(draw(n)))
