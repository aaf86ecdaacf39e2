"""The Gaussian: the family in which every loop has an exact answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


def root(cov: np.ndarray) -> np.ndarray:
    """A factor F with F Fᵀ = cov, `[... d d]`: Cholesky, or where that fails the eigen root, clipped at 0."""
    try:
        return np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(cov)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :])


def moments(
    data: np.ndarray, weights: np.ndarray | None, ddof: int
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Weighted mean and covariance of rows: denominator V₁ − V₂/V₁ for ddof 1, V₁ for ddof 0."""
    x = data.astype(np.float64, copy=False)
    if weights is None:
        n = x.shape[0]
        mean = x.sum(axis=0) / n
        centred = x - mean
        return mean, centred.T @ centred / (n - ddof)
    v1 = weights.sum()
    mean = weights @ x / v1
    centred = x - mean
    scatter = (centred * weights[:, None]).T @ centred
    return mean, scatter / (v1 - (weights @ weights) / v1 if ddof else v1)


def largest_strength(base: Gaussian, auxiliary: Gaussian) -> float:
    """The g below which (1 + g) P_base − g P_auxiliary is positive definite, P the precisions.

    In directions where both are 1 and μ it is 1 + g − gμ > 0: g < 1/(μ_max − 1).
    """
    factor = root(base.cov)
    try:
        most = float(np.linalg.eigvalsh(factor.T @ np.linalg.solve(auxiliary.cov, factor))[-1])
    except np.linalg.LinAlgError:  # a singular covariance: its precision has no bound
        return 0.0
    return 1.0 / (most - 1.0) if most > 1.0 else float("inf")


class Gaussian:
    """N(mean, cov). Fitted by the (weighted) sample moments; sampled from N(mean, bias · cov).

    Works with fewer rows than dimensions: the covariance is then singular, rows lie in its support, and
    `log_prob` is −inf off it. Data: floating `[n d]`, n >= 2. Rows come in the dtype of `mean`, which is
    that of the data.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float] | np.ndarray | None = None,
        cov: Sequence[Sequence[float]] | np.ndarray | None = None,
        ddof: int = 1,
    ) -> None:
        if ddof not in (0, 1):
            raise ValueError(f"Gaussian: ddof must be 0 or 1, got {ddof!r}")
        if (mean is None) != (cov is None):
            raise ValueError("Gaussian: give mean [d] and cov [d d] together, or neither")
        self.ddof = ddof
        self._mean: np.ndarray | None = None
        self._cov: np.ndarray | None = None
        self._root: np.ndarray | None = None
        if mean is not None and cov is not None:
            m = np.asarray(mean)
            m = m if m.dtype.kind == "f" else m.astype(np.float64)
            s = np.asarray(cov, dtype=np.float64)
            if m.ndim != 1 or s.shape != (m.size, m.size):
                raise ValueError(
                    f"Gaussian: mean must have shape [d] and cov [d d], got {m.shape} and {s.shape}; "
                    "for example Gaussian(mean=[0, 0], cov=[[1, 0], [0, 1]])"
                )
            self._mean, self._cov = m, s

    def __repr__(self) -> str:
        if self._mean is None:
            return f"Gaussian(ddof={self.ddof})"
        return f"Gaussian(mean={self._mean.tolist()}, cov={self.cov.tolist()}, ddof={self.ddof})"

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        return self._fitted()[0]

    @property
    def cov(self) -> Float[np.ndarray, "d d"]:
        return self._fitted()[1]

    def _fitted(self) -> tuple[np.ndarray, np.ndarray]:
        if self._mean is None or self._cov is None:
            raise ValueError("Gaussian: not fitted; call fit(data, None, rng), or give mean= and cov=")
        return self._mean, self._cov

    def fit(
        self, data: np.ndarray, weights: Float[np.ndarray, " n"] | None, rng: np.random.Generator
    ) -> Gaussian:
        if data.ndim != 2 or data.dtype.kind != "f" or data.shape[0] < 2:
            raise ValueError(
                f"Gaussian: data must be floating rows [n d] with n >= 2, got {data.dtype} {data.shape}"
            )
        mean, cov = moments(data, weights, self.ddof)
        return self._made(mean.astype(data.dtype, copy=False), cov)

    def _made(self, mean: np.ndarray, cov: np.ndarray) -> Gaussian:
        model = Gaussian.__new__(Gaussian)
        model.ddof, model._mean, model._cov, model._root = self.ddof, mean, cov, None
        return model

    def sample(self, n: int, bias: float, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        mean, cov = self._fitted()
        if self._root is None:
            self._root = np.sqrt(cov) if mean.size == 1 else root(cov)
        rows = rng.standard_normal((n, mean.size)) @ (self._root.T * np.sqrt(bias))
        rows += mean
        return np.asarray(rows, dtype=mean.dtype)

    def log_prob(self, data: np.ndarray) -> Float[np.ndarray, " n"]:
        """Nats a row; for a singular covariance the density on its support, −inf off it."""
        mean, cov = self._fitted()
        centred = np.asarray(data, dtype=np.float64) - mean
        values, vectors = np.linalg.eigh(cov)
        scale = max(float(values[-1]), 0.0)
        inside = values > scale * mean.size * np.finfo(np.float64).eps
        along = centred @ vectors
        quadratic = (along[:, inside] ** 2 / values[inside]).sum(axis=1)
        log_det = float(np.log(values[inside]).sum())
        density = -0.5 * (quadratic + log_det + int(inside.sum()) * np.log(2 * np.pi))
        if inside.all():
            return np.asarray(density)
        # Off the support by more than rounding: the rows and the covariance are known to a relative 1e-8.
        off = (along[:, ~inside] ** 2).sum(axis=1)
        tolerance = 1e-8 * (np.abs(np.asarray(data, dtype=np.float64)).max(axis=1) + np.sqrt(scale))
        return np.where(np.sqrt(off) <= tolerance, density, -np.inf)

    def combine(self, models: Sequence[Any], weights: Sequence[float]) -> Gaussian:
        """The normalised product Π N_i^{w_i}: precisions and precision-weighted means add.

        Raises ValueError when the sum of precisions is not positive definite.
        """
        precisions = [np.linalg.inv(model.cov) for model in models]
        precision = sum(w * p for w, p in zip(weights, precisions, strict=True))
        shift = sum(w * p @ m.mean for w, p, m in zip(weights, precisions, models, strict=True))
        precision = np.asarray((precision + np.transpose(precision)) / 2)
        if np.linalg.eigvalsh(precision)[0] <= 0:
            raise ValueError(
                f"Gaussian.combine: the combined precision is not positive definite: {precision}"
            )
        cov = np.linalg.inv(precision)
        return self._made((cov @ shift).astype(models[0].mean.dtype), (cov + cov.T) / 2)

    def state(self) -> dict[str, np.ndarray]:
        mean, cov = self._fitted()
        return {"mean": mean, "cov": cov}

    def load(self, state: dict[str, np.ndarray]) -> Gaussian:
        return self._made(state["mean"], state["cov"])
