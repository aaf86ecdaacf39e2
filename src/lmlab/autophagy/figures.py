"""The numbers behind the figures, as plain lists and dicts: whoever draws them needs nothing of this room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmlab.autophagy import laws, theory
from lmlab.autophagy.loops import Synthetic


def collapse(
    *,
    n: int = 50,
    generations: int = 100,
    trials: int = 2000,
    shown: Sequence[int] = (1, 5, 20, 100),
    seed: int = 0,
) -> dict[str, Any]:
    """Covariance collapse of Synthetic(n) in two dimensions.

    log_det: mean and the central 95 % of `trials` paths at each generation, and the exact mean and standard
    deviation. ellipses: covariance and mean of the first path at the generations `shown`.
    """
    paths = laws.gaussian(Synthetic(n), generations=generations, trials=trials, d=2, seed=seed)
    low, high = np.quantile(paths.log_det, [0.025, 0.975], axis=1)
    exact = [theory.log_variance(n, t, d=2) for t in range(1, generations + 1)]
    return {
        "generations": list(range(1, generations + 1)),
        "log_det": {
            "mean": paths.log_det.mean(axis=1).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "theory_mean": [mean for mean, _ in exact],
            "theory_sd": [variance**0.5 for _, variance in exact],
        },
        "ellipses": [
            {"generation": t, "cov": paths.cov[t - 1, 0].tolist(), "mean": paths.mean[t - 1, 0].tolist()}
            for t in shown
            if t <= generations
        ],
    }
