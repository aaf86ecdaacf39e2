"""The metrics that `run` knows by name, and what a metric is shown of a generation."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lmlab.autophagy.generators.protocol import Generator, describe
from lmlab.autophagy.metrics.frontier import mauve
from lmlab.autophagy.metrics.neighbours import density_coverage, precision_recall
from lmlab.autophagy.metrics.text import ngram_coverage, ngram_entropy, self_bleu
from lmlab.autophagy.metrics.vectors import frechet, w2_squared


class Sample:
    """One generation, as a metric sees it.

    generation: t; real: the held-out rows; synthetic: the evaluation rows of G_t, drawn when first used;
    model: G_t; train: D_t.
    """

    def __init__(
        self,
        generation: int,
        real: np.ndarray,
        model: Generator,
        train: np.ndarray,
        draw: Callable[[], np.ndarray],
    ) -> None:
        self.generation = generation
        self.real = real
        self.model = model
        self.train = train
        self._draw = draw

    @cached_property
    def synthetic(self) -> np.ndarray:
        return self._draw()

    @cached_property
    def precision_recall(self) -> tuple[float, float]:
        return precision_recall(self.real, self.synthetic)

    @cached_property
    def density_coverage(self) -> tuple[float, float]:
        return density_coverage(self.real, self.synthetic)


def _bits_per_byte(sample: Sample) -> float:
    model: Any = sample.model
    nbytes = model.nbytes(sample.real) if hasattr(model, "nbytes") else sample.real.size
    return float(-np.sum(model.log_prob(sample.real)) / (math.log(2.0) * nbytes))


def _distinct(n: int) -> Callable[[Sample], float]:
    def metric(sample: Sample) -> float:
        from lmlab.evaluate import distinct_n

        return float(distinct_n(sample.synthetic.tolist(), n))

    return metric


def _entropy(n: int) -> Callable[[Sample], float]:
    return lambda sample: ngram_entropy(sample.synthetic, n)


def _moments(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the model where it has them, else of the evaluation rows."""
    model: Any = sample.model
    if hasattr(model, "mean") and hasattr(model, "cov"):
        return np.asarray(model.mean, np.float64), np.asarray(model.cov)
    rows = np.asarray(sample.synthetic, np.float64)
    return rows.mean(axis=0), np.atleast_2d(np.cov(rows, rowvar=False))


def _mean_square(sample: Sample) -> float:
    return float((_moments(sample)[0] ** 2).mean())


def _log_det(sample: Sample) -> float:
    sign, value = np.linalg.slogdet(_moments(sample)[1])
    return float(value) if sign > 0 else -math.inf


NAMED: dict[str, Callable[[Sample], float]] = {
    "frechet": lambda s: frechet(s.real, s.synthetic),
    "w2": lambda s: w2_squared(s.real, s.synthetic),
    "precision": lambda s: s.precision_recall[0],
    "recall": lambda s: s.precision_recall[1],
    "density": lambda s: s.density_coverage[0],
    "coverage": lambda s: s.density_coverage[1],
    "bits_per_byte": _bits_per_byte,
    **{f"distinct_{n}": _distinct(n) for n in (1, 2, 3, 4)},
    **{f"entropy_{n}": _entropy(n) for n in (1, 2, 3)},
    "self_bleu": lambda s: self_bleu(s.synthetic),
    "tail_coverage": lambda s: ngram_coverage(s.real, s.synthetic, n=1, max_count=5),
    "mauve": lambda s: mauve(s.real, s.synthetic),
    "mean_square": _mean_square,
    "log_det": _log_det,
}
_NEED_LOG_PROB = {"bits_per_byte"}
_NEED_IDS = {name for name in NAMED if name.startswith(("distinct_", "entropy_"))} | {
    "self_bleu",
    "tail_coverage",
}
_NEED_NEIGHBOURS = {"precision", "recall", "density", "coverage"}


def resolve(
    metrics: Sequence[str] | Mapping[str, Callable[[Sample], float]], generator: Generator
) -> dict[str, Callable[[Sample], float]]:
    """The functions behind the names that `run` was given; bad ones are refused before any work."""
    if isinstance(metrics, Mapping):
        for name, function in metrics.items():
            if not callable(function):
                raise ValueError(f"metrics: {name!r} must be a function of a Sample, got {function!r}")
        return dict(metrics)
    if isinstance(metrics, str):
        raise ValueError(f"metrics must be a sequence of names, got one string; write metrics=({metrics!r},)")
    for name in metrics:
        if name not in NAMED:
            near = difflib.get_close_matches(str(name), NAMED, n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(NAMED)}"
            raise ValueError(f"metrics: unknown metric {name!r}; {hint}")
        if name in _NEED_LOG_PROB and not callable(getattr(generator, "log_prob", None)):
            others = [other for other in NAMED if other not in _NEED_LOG_PROB]
            raise TypeError(
                f"metrics: {name!r} needs log_prob, which {describe(generator)} does not have; "
                f"without it: {', '.join(difflib.get_close_matches(name, others, n=3, cutoff=0.0))}"
            )
    return {name: NAMED[name] for name in metrics}


def check_rows(names: Sequence[str] | Mapping[str, Any], held_out: np.ndarray) -> None:
    """Refuse held-out rows that a named metric cannot use; functions of the caller's own see to theirs."""
    for name in [] if isinstance(names, Mapping) else names:
        if name in _NEED_IDS and (held_out.ndim != 2 or held_out.dtype.kind not in "iu"):
            raise ValueError(
                f"metrics: {name!r} needs rows of integer ids [n t], held_out is {held_out.dtype} "
                f"{list(held_out.shape)}"
            )
        if name in _NEED_NEIGHBOURS and held_out.shape[0] < 6:
            raise ValueError(
                f"metrics: {name!r} needs at least 6 held-out rows (k + 1, k = 5), got {held_out.shape[0]}"
            )
