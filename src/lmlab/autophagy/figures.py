"""The numbers behind the figures, as plain lists and dicts: whoever draws them needs nothing of this room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmlab.autophagy import laws, theory
from lmlab.autophagy.generators.mixture import FittedMixture, GaussianMixture
from lmlab.autophagy.loops import Fresh, Loop, Memory, Synthetic
from lmlab.autophagy.metrics.named import Sample
from lmlab.autophagy.runner import run

GRID = 5  # modes a side of `grid_law`


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


def phase(
    n_real: Sequence[int],
    n_synth: Sequence[int],
    *,
    bias: float,
    d: int = 1,
    trials: int = 4096,
    seed: int = 0,
) -> dict[str, Any]:
    """n_e/n_r of the fresh plateau over n_real (rows) and n_synth (columns), and n_s*, None where there is none.

    The line n_e = n_r is where the ratio is 1.
    """
    ratio = laws.phase_map(n_real, n_synth, bias=bias, d=d, trials=trials, seed=seed)
    limit = theory.admissible_n_synth(bias, d)
    return {
        "bias": bias,
        "d": d,
        "n_real": list(n_real),
        "n_synth": list(n_synth),
        "ratio": ratio.tolist(),
        "admissible": limit if np.isfinite(limit) else None,
    }


def memory(
    ks: Sequence[int] = (1, 2, 3, 5, 10, 20),
    *,
    n_real: int = 100,
    n_synth: int = 100,
    bias: float = 1.0,
    generations: int = 100,
    trials: int = 20_000,
    seed: int = 0,
) -> dict[str, Any]:
    """n_e/n_r after `generations` of Memory(Fresh(n_real, n_synth), K), one dimension, against K."""
    ratios = []
    for k in ks:
        loop: Loop = Memory(Fresh(n_real, n_synth), k)
        last = laws.gaussian(
            loop, generations=generations, trials=trials, bias=bias, seed=seed, record=[generations]
        )
        ratios.append(theory.effective_n(float(last.w2().mean())) / n_real)
    return {"k": list(ks), "ratio": ratios, "n_real": n_real, "n_synth": n_synth, "bias": bias}


def grid_law() -> FittedMixture:
    """25 equal round modes of deviation 0.05 on a grid of side 4."""
    side = np.linspace(-2.0, 2.0, GRID)
    means = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    covs = np.tile(0.05**2 * np.eye(2), (GRID**2, 1, 1))
    return FittedMixture(GaussianMixture(GRID**2), np.full(GRID**2, 1 / GRID**2), means, covs)


def count_modes(rows: np.ndarray) -> tuple[float, float]:
    """Of rows [n 2]: how many modes of `grid_law` are left, and the mean variance within a mode.

    A row belongs to the nearest mode; a mode is left while it has a row within 0.5 of it, half of the grid's
    step. nan: no mode has two rows.
    """
    means = grid_law().means
    offset = rows[:, None, :] - means
    squares = (offset**2).sum(axis=2)
    mode = squares.argmin(axis=1)
    near = squares[np.arange(mode.size), mode] < 0.25
    offset = offset[np.arange(mode.size), mode]
    spread = [offset[mode == m].var(axis=0).mean() for m in np.unique(mode) if (mode == m).sum() > 1]
    return float(np.unique(mode[near]).size), float(np.mean(spread)) if spread else float("nan")


def modes(
    loop: Loop,
    *,
    generations: int = 10,
    bias: float = 1.0,
    shown: Sequence[int] = (1, 2, 5, 10),
    n: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """A 25-mode mixture in a loop: `count_modes` by generation, and points to scatter. Needs scikit-learn."""
    law, points = grid_law(), {}

    def left(sample: Sample) -> float:
        points[sample.generation] = sample.synthetic.tolist()
        return count_modes(sample.synthetic)[0]

    history = run(
        loop, GaussianMixture(GRID**2), law, generations=generations, bias=bias, seeds=[seed], n_eval=n,
        metrics={"left": left, "spread": lambda sample: count_modes(sample.synthetic)[1]}, held_out=law.means,
    )  # fmt: skip
    return {
        "generations": list(range(1, generations + 1)),
        "modes": history["left"][0].tolist(),
        "variance": [float(x) if np.isfinite(x) else None for x in history["spread"][0]],
        "points": [{"generation": t, "rows": points[t]} for t in shown if t in points],
    }
