"""A mixture of Gaussians, fitted by expectation maximisation (scikit-learn, extra "mixture")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from lmlab.autophagy.checks import whole
from lmlab.autophagy.generators.gaussian import root
from lmlab.autophagy.generators.kde import draw_rows
from lmlab.autophagy.generators.template import TemplateLaw

Covariance = Literal["full", "tied", "diag", "spherical"]


@dataclass(frozen=True)
class GaussianMixture(TemplateLaw):
    """`k` Gaussian modes with shares, on floating rows `[n d]`. Bias scales the covariances.

    Row weights are draw weights. ImportError without scikit-learn, which `fit` alone needs.
    """

    k: int
    covariance: Covariance = "full"
    max_iter: int = 100

    def __init__(self, k: int, *, covariance: Covariance = "full", max_iter: int = 100) -> None:
        if covariance not in get_args(Covariance):
            raise ValueError(
                f"GaussianMixture: covariance must be one of {', '.join(get_args(Covariance))}, "
                f"got {covariance!r}"
            )
        object.__setattr__(self, "k", whole("GaussianMixture: k", k, 1))
        object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "max_iter", whole("GaussianMixture: max_iter", max_iter, 1))

    def fit(
        self,
        data: Float[np.ndarray, "n d"],
        weights: Float[np.ndarray, " n"] | None,
        rng: np.random.Generator,
    ) -> FittedMixture:
        if data.ndim != 2 or data.dtype.kind != "f" or data.shape[0] < max(2, self.k):
            raise ValueError(
                f"GaussianMixture: data must be floating rows [n d] with n >= {max(2, self.k)}, "
                f"got {data.dtype} {data.shape}"
            )
        try:
            from sklearn import mixture
        except ImportError as error:
            raise ImportError("GaussianMixture needs scikit-learn: pip install 'lmlab[mixture]'") from error
        rows = draw_rows(data, weights, rng).astype(np.float64)
        found = mixture.GaussianMixture(
            self.k,
            covariance_type=self.covariance,
            max_iter=self.max_iter,
            random_state=int(rng.integers(2**31)),
        ).fit(rows)
        return FittedMixture(
            self, found.weights_, found.means_, self._whole(found, data.shape[1]), data.dtype
        )

    def _whole(self, found: Any, d: int) -> np.ndarray:
        """The covariances as `[k d d]`."""
        given = np.asarray(found.covariances_)
        if self.covariance == "full":
            return given
        if self.covariance == "tied":
            return np.broadcast_to(given, (self.k, d, d)).copy()
        diagonal = given if self.covariance == "diag" else np.repeat(given[:, None], d, axis=1)
        return np.asarray(diagonal[:, :, None] * np.eye(d))

    def load(self, state: dict[str, np.ndarray]) -> FittedMixture:
        return FittedMixture(self, state["shares"], state["means"], state["covs"], state["rows"].dtype)


@dataclass(frozen=True, eq=False)
class FittedMixture:
    """What `GaussianMixture.fit` returns; also a real law: FittedMixture(GaussianMixture(k), shares, …)."""

    template: GaussianMixture
    shares: Float[np.ndarray, " k"]
    means: Float[np.ndarray, "k d"]
    covs: Float[np.ndarray, "k d d"]
    dtype: np.dtype[Any] = np.dtype(np.float64)

    def fit(self, data: np.ndarray, weights: np.ndarray | None, rng: np.random.Generator) -> FittedMixture:
        return self.template.fit(data, weights, rng)

    def load(self, state: dict[str, np.ndarray]) -> FittedMixture:
        return self.template.load(state)

    def state(self) -> dict[str, np.ndarray]:
        return {
            "shares": self.shares,
            "means": self.means,
            "covs": self.covs,
            "rows": np.zeros(0, self.dtype),
        }

    def modes(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """log(share · density) of each row under each mode."""
        factor = np.linalg.cholesky(self.covs)
        centred = np.asarray(rows, dtype=np.float64)[None] - self.means[:, None]
        solved = np.linalg.solve(factor, centred.transpose(0, 2, 1))
        log_det = 2.0 * np.log(np.einsum("kii->ki", factor)).sum(axis=1)
        constant = np.log(self.shares) - 0.5 * (log_det + self.means.shape[1] * np.log(2.0 * np.pi))
        return np.asarray(constant - 0.5 * (solved**2).sum(axis=1).T)

    def sample(self, n: int, bias: float, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        mode = rng.choice(self.shares.size, n, p=self.shares / self.shares.sum())
        rows = rng.standard_normal((n, self.means.shape[1])) * np.sqrt(bias)
        rows = np.einsum("nij,nj->ni", root(self.covs)[mode], rows) + self.means[mode]
        return np.asarray(rows, dtype=self.dtype)

    def log_prob(self, data: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Nats a row."""
        parts = self.modes(data)
        top = parts.max(axis=1)
        return np.asarray(top + np.log(np.exp(parts - top[:, None]).sum(axis=1)))
