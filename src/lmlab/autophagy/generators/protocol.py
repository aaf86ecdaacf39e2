"""What a model must offer to be put into a loop."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class Generator(Protocol):
    """A generative model with numpy arrays at both ends; the first axis of data counts rows.

    Optional methods: `log_prob(data) -> [n]` in nats a row; `nbytes(data) -> int`, the bytes that the rows
    stand for (without it: data.size); `combine(models, weights) -> Generator`, the normalised product of the
    models' densities to the powers `weights`, which `SelfGuided` needs.
    """

    def fit(
        self, data: np.ndarray, weights: Float[np.ndarray, " n"] | None, rng: np.random.Generator
    ) -> Generator:
        """A new model, fitted to the rows; `self` stays the untrained template."""
        ...

    def sample(self, n: int, bias: float, rng: np.random.Generator) -> np.ndarray:
        """`n` rows. bias 1 draws from the model itself, 0 gives only its modes."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """All that was learnt, as arrays without objects."""
        ...

    def load(self, state: dict[str, np.ndarray]) -> Generator:
        """A new fitted model with this state and the template's settings."""
        ...


def describe(generator: Any) -> str:
    """The name of a generator in messages."""
    return type(generator).__name__
