"""Kernel density: every training row, blurred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from lmlab.autophagy.generators.template import TemplateLaw

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class KDE(TemplateLaw):
    """Isotropic Gaussian kernels on the training rows, floating `[n d]`.

    bandwidth: h in data units, or "scott": h = σ n^{−1/(d+4)}, with σ² the mean variance of a coordinate
    (ddof 1) and n the effective number of rows, (Σu)²/Σu². Row weights are draw weights. Bias scales h²:
    at 0 training rows come back as they are.
    """

    bandwidth: float | Literal["scott"] = "scott"

    def __init__(self, *, bandwidth: float | Literal["scott"] = "scott") -> None:
        if bandwidth != "scott" and not (isinstance(bandwidth, int | float) and 0.0 < bandwidth < math.inf):
            raise ValueError(f"KDE: bandwidth must be 'scott' or a number > 0, got {bandwidth!r}")
        object.__setattr__(self, "bandwidth", bandwidth)

    def fit(
        self,
        data: Float[np.ndarray, "n d"],
        weights: Float[np.ndarray, " n"] | None,
        rng: np.random.Generator,
    ) -> FittedKDE:
        if data.ndim != 2 or data.dtype.kind != "f" or data.shape[0] < 2:
            raise ValueError(
                f"KDE: data must be floating rows [n d] with n >= 2, got {data.dtype} {data.shape}"
            )
        n, d = data.shape
        u = np.full(n, 1.0 / n) if weights is None else weights / weights.sum()
        if self.bandwidth == "scott":
            rows = data.astype(np.float64)
            effective = 1.0 / (u @ u)
            variance = (u @ (rows - u @ rows) ** 2).mean() / (1.0 - u @ u)
            h = math.sqrt(variance) * effective ** (-1.0 / (d + 4))
        else:
            h = float(self.bandwidth)
        return FittedKDE(self, data, u, h)

    def load(self, state: dict[str, np.ndarray]) -> FittedKDE:
        return FittedKDE(self, state["rows"], state["shares"], float(state["h"]))


@dataclass(frozen=True, eq=False)
class FittedKDE:
    """What `KDE.fit` returns. shares: with which probability each row is taken; h: the kernel's deviation."""

    template: KDE
    rows: Float[np.ndarray, "n d"]
    shares: Float[np.ndarray, " n"]
    h: float

    def fit(self, data: np.ndarray, weights: np.ndarray | None, rng: np.random.Generator) -> FittedKDE:
        return self.template.fit(data, weights, rng)

    def load(self, state: dict[str, np.ndarray]) -> FittedKDE:
        return self.template.load(state)

    def state(self) -> dict[str, np.ndarray]:
        return {"rows": self.rows, "shares": self.shares, "h": np.array(self.h)}

    def sample(self, n: int, bias: float, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        chosen = rng.choice(self.rows.shape[0], n, p=self.shares)
        noise = rng.standard_normal((n, self.rows.shape[1])) * (self.h * math.sqrt(bias))
        return np.asarray(self.rows[chosen] + noise, dtype=self.rows.dtype)

    def log_prob(self, data: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Nats a row. Where h = 0 (equal training rows): +∞ on a training row, −∞ elsewhere."""
        x, rows = np.asarray(data, dtype=np.float64), self.rows.astype(np.float64)
        if self.h == 0.0:
            return np.where([(rows == row).all(axis=1).any() for row in x], np.inf, -np.inf)
        found = np.empty(x.shape[0])
        with np.errstate(divide="ignore"):
            log_shares = np.log(self.shares)
        size = max(1, _BLOCK_BYTES // (8 * rows.shape[0]))
        norms = (rows**2).sum(axis=1)
        for begin in range(0, x.shape[0], size):
            part = x[begin : begin + size]
            squared = (part**2).sum(axis=1)[:, None] - 2.0 * part @ rows.T + norms
            exponent = log_shares - np.maximum(squared, 0.0) / (2.0 * self.h**2)
            top = exponent.max(axis=1)
            found[begin : begin + size] = top + np.log(np.exp(exponent - top[:, None]).sum(axis=1))
        return np.asarray(found - 0.5 * x.shape[1] * math.log(2.0 * math.pi * self.h**2))


def draw_rows(
    data: np.ndarray, weights: Sequence[float] | np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """As many rows as `data` has, taken by their weights: how a model without row weights is given them."""
    if weights is None:
        return data
    u = np.asarray(weights, dtype=np.float64)
    return np.asarray(data[rng.choice(data.shape[0], data.shape[0], p=u / u.sum())])
