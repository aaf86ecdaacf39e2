"""Factors of Wishart matrices: the scatter of normal rows without the rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def bartlett(rng: np.random.Generator, trials: int, d: int, dof: int) -> Float[np.ndarray, "r d k"]:
    """A with A Aᵀ ~ Wishart_d(I, dof): Bartlett's triangle, or d × dof plain normals when dof < d."""
    if dof < d:
        return rng.standard_normal((trials, d, dof))
    a = np.zeros((trials, d, d))
    lower = np.tril_indices(d, -1)
    a[:, lower[0], lower[1]] = rng.standard_normal((trials, lower[0].size))
    diagonal = np.arange(d)
    a[:, diagonal, diagonal] = np.sqrt(rng.chisquare(dof - diagonal, (trials, d)))
    return a
