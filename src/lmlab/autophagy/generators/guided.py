"""Negative guidance by the model's own output: away from what self-training would make of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmlab.autophagy.checks import whole
from lmlab.autophagy.generators.gaussian import Gaussian, largest_strength
from lmlab.autophagy.generators.protocol import Generator, describe
from lmlab.autophagy.generators.template import TemplateLaw


@dataclass(frozen=True)
class SelfGuided(TemplateLaw):
    """log density (1 + g) log p_base − g log p_aux, normalised; g is `strength`.

    fit: the base on the data, then an auxiliary of the same kind on `n` rows of the base (bias 1). The base
    must have `combine`. Source: Alemohammad et al., Self-Improving Diffusion Models with Synthetic Data,
    arXiv:2408.16333; their results on images are not reproduced here.
    """

    base: Generator
    strength: float
    n: int

    def __post_init__(self) -> None:
        if not callable(getattr(self.base, "combine", None)):
            raise TypeError(
                f"SelfGuided: base must have combine(models, weights), as Gaussian and NGram do; "
                f"{describe(self.base)} does not"
            )
        if not 0.0 <= self.strength < np.inf:
            raise ValueError(f"SelfGuided: strength must be a finite number >= 0, got {self.strength!r}")
        whole("SelfGuided: n", self.n, 1)

    def fit(self, data: np.ndarray, weights: np.ndarray | None, rng: np.random.Generator) -> FittedSelfGuided:
        """Raises ValueError with the largest strength that works, where the combination has no density."""
        base = self.base.fit(data, weights, rng)
        auxiliary = self.base.fit(base.sample(self.n, 1.0, rng), None, rng)
        return self._guided(base, auxiliary)

    def _guided(self, base: Generator, auxiliary: Generator) -> FittedSelfGuided:
        if isinstance(base, Gaussian) and isinstance(auxiliary, Gaussian):
            most = largest_strength(base, auxiliary)
            if self.strength >= most:
                raise ValueError(
                    f"SelfGuided: strength must be below {most:.6g} here, got {self.strength!r}: the combined "
                    "precision is not positive definite"
                )
        combine: Any = getattr(base, "combine")  # noqa: B009 - an optional method of the protocol
        combined = combine([base, auxiliary], [1.0 + self.strength, -self.strength])
        return FittedSelfGuided(self, base, auxiliary, combined)

    def load(self, state: dict[str, np.ndarray]) -> FittedSelfGuided:
        models = [
            self.base.load({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
            for prefix in ("base/", "auxiliary/")
        ]
        return self._guided(*models)


@dataclass(frozen=True, eq=False)
class FittedSelfGuided:
    """What `SelfGuided.fit` returns."""

    template: SelfGuided
    base: Generator
    auxiliary: Generator
    combined: Any

    def fit(self, data: np.ndarray, weights: np.ndarray | None, rng: np.random.Generator) -> FittedSelfGuided:
        return self.template.fit(data, weights, rng)

    def load(self, state: dict[str, np.ndarray]) -> FittedSelfGuided:
        return self.template.load(state)

    def state(self) -> dict[str, np.ndarray]:
        return {f"base/{k}": v for k, v in self.base.state().items()} | {
            f"auxiliary/{k}": v for k, v in self.auxiliary.state().items()
        }

    def sample(self, n: int, bias: float, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(self.combined.sample(n, bias, rng))

    def log_prob(self, data: np.ndarray) -> np.ndarray:
        return np.asarray(self.combined.log_prob(data))
