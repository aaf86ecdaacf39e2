"""What a generator is before it was fitted: settings, and one clear error for everything else."""

from __future__ import annotations

import numpy as np


class Template:
    """Base of generators whose `fit` returns an object of another class. These have learnt nothing to show."""

    def sample(self, n: int, bias: float, rng: np.random.Generator) -> np.ndarray:
        raise self._unfitted()

    def state(self) -> dict[str, np.ndarray]:
        raise self._unfitted()

    def _unfitted(self) -> ValueError:
        return ValueError(
            f"{type(self).__name__}: not fitted; call fit(rows, None, rng) first, it returns the fitted model"
        )


class TemplateLaw(Template):
    """Of generators that tell probabilities too."""

    def log_prob(self, data: np.ndarray) -> np.ndarray:
        raise self._unfitted()
