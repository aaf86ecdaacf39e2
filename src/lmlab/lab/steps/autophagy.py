"""Stage 6: the loops in which a model is trained on its own output, each beside its control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lmlab.lab.corpus import CorpusError, read_documents
from lmlab.lab.recipe import AutophagyOptions, Recipe
from lmlab.lab.steps.job import Job
from lmlab.model.errors import ConfigError
from lmlab.model.fields import to_plain

if TYPE_CHECKING:
    from pathlib import Path

    from lmlab.autophagy import History, Loop

VERSION = 1
INPUTS = ("corpus",)
COLLAPSE_AT = (1, 5, 20, 50, 100)  # generations whose ellipse is drawn
COLLAPSE_ROWS, COLLAPSE_TRIALS = 100, 400


def settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    return {"autophagy": to_plain(recipe.autophagy), "seed": recipe.seed}, []


def work(job: Job) -> dict[str, Any]:
    options = job.recipe.autophagy
    assert options is not None  # the pipeline leaves the stage out without the table
    with job.display.work(job.label) as advance, job.warnings_to_log():
        advance(0, "loops")
        arms = run_loops(job, options)
        advance(0, "collapse")
        collapse = gaussian_collapse(job.recipe.seed) if options.collapse else None
    return {"arms": arms, "collapse": collapse}


def run_loops(job: Job, options: AutophagyOptions) -> list[dict[str, Any]]:
    """Every loop with every bias, and the control of each loop: as many rows, all of them real."""
    from lmlab.autophagy import RealOnly, run

    generator, pool, held_out, metrics = _material(job, options)
    arms = []
    for name in options.loops:
        loop = make_loop(name, options)
        runs: list[tuple[str, float, bool, Loop]] = [(name, bias, False, loop) for bias in options.bias]
        if options.control:
            runs.append((name, 1.0, True, RealOnly(loop)))
        for label, bias, control, arm in runs:
            history = run(
                arm,
                generator,
                pool,
                generations=options.generations,
                metrics=metrics,
                seeds=range(job.recipe.seed, job.recipe.seed + options.seeds),
                bias=bias,
                filters=_filters(options, generator),
                held_out=held_out,
            )
            arms.append(_arm(label, bias, control, options, history))
    return arms


def make_loop(name: str, options: AutophagyOptions) -> Loop:
    """A loop of `lmlab.autophagy` by its name in a recipe."""
    from lmlab import autophagy as room

    initial = {"n_initial": options.n_initial or None}
    real, synth = options.n_real, options.n_synth
    loops: dict[str, Any] = {
        "synthetic": lambda: room.Synthetic(synth, **initial),
        "augmentation": lambda: room.Augmentation(real, synth),
        "fresh": lambda: room.Fresh(real, synth, **initial),
        "accumulate": lambda: room.Accumulate(synth, **initial),
        "subsample": lambda: room.Subsample(synth, **initial),
        "contamination": lambda: room.Contamination(real, options.synthetic),
    }
    loop = loops[name]()
    if options.memory > 1:
        loop = room.Memory(loop, options.memory)
    return room.Weighted(loop, options.weight) if options.weight else loop


def _filters(options: AutophagyOptions, generator: Any) -> tuple[Any, ...]:
    """best_of > 1: of each group of draws the one that the first model thinks most likely."""

    if options.best_of == 1:
        return ()
    raise ConfigError("autophagy.best_of", f"needs a reward; only 1 is accepted here, got {options.best_of}")


def _material(job: Job, options: AutophagyOptions) -> tuple[Any, Any, Any, tuple[str, ...]]:
    """(generator, real rows, held-out rows, metrics) for the generator of a recipe."""
    from lmlab.autophagy import Gaussian, NGram

    if options.generator == "gaussian":
        real = Gaussian(mean=np.zeros(2), cov=np.eye(2))
        held = real.sample(2000, 1.0, np.random.Generator(np.random.Philox(job.recipe.seed)))
        return Gaussian(), real, held, ("frechet", "log_det")
    if options.generator == "ngram":
        corpus = job.inputs["corpus"]
        needed = _rows_needed(options)
        pool = text_rows(corpus / "train.jsonl", options.row_length, needed, "train")
        held = text_rows(corpus / "held_out.jsonl", options.row_length, 1, "held-out")[:2000]
        return NGram(256, order=options.order), pool, held, options.metrics
    raise ConfigError(
        "autophagy.generator", f'must be "gaussian" or "ngram" in this version, got {options.generator!r}'
    )


def _rows_needed(options: AutophagyOptions) -> int:
    """The most real rows that one arm or its control asks for over all generations."""
    plans = [make_loop(name, options) for name in options.loops]
    most = 0
    for loop in plans:
        own, control = {}, 0
        for t in range(1, options.generations + 1):
            parts = loop.plan(t).parts
            own |= {part.born: part.n for part in parts if part.model == 0}
            control += sum(part.n for part in parts)
        most = max(most, sum(own.values()), control if options.control else 0)
    return most


def text_rows(path: Path, length: int, needed: int, split: str) -> np.ndarray:
    """The bytes of a split as rows of `length`, uint8 values as int64 ids; the rest of the last row is left."""
    text = "\n\n".join(read_documents(path)).encode()
    n = len(text) // length
    if n < needed:
        raise CorpusError(
            f"[autophagy] needs {needed} rows of {length} bytes ({needed * length} bytes) of {split} text and "
            f"found {len(text)} bytes; lower n_real, n_synth, generations or row_length, or set control = false"
        )
    return np.frombuffer(text[: n * length], np.uint8).astype(np.int64).reshape(n, length)


def _arm(
    name: str, bias: float, control: bool, options: AutophagyOptions, history: History
) -> dict[str, Any]:
    return {
        "loop": name,
        "bias": bias,
        "control": control,
        "generations": list(range(1, options.generations + 1)),
        "seeds": options.seeds,
        "metrics": {
            metric: {"mean": history.mean(metric).tolist(), "sem": history.sem(metric).tolist()}
            for metric in history.metrics
        },
    }


def gaussian_collapse(seed: int) -> dict[str, Any]:
    """The covariance of a two-dimensional Gaussian that is fitted to its own samples, generation after
    generation: the exact law drawn many times, the theory beside it, and one path as ellipses."""
    from lmlab.autophagy import Synthetic, laws, theory

    generations = max(COLLAPSE_AT)
    path = laws.gaussian(
        Synthetic(COLLAPSE_ROWS), generations=generations, trials=COLLAPSE_TRIALS, d=2, seed=seed
    )
    log_det = np.linalg.slogdet(path.cov)[1]
    low, high = np.quantile(log_det, [0.05, 0.95], axis=1)
    told = [theory.log_variance(COLLAPSE_ROWS, t, d=2) for t in range(1, generations + 1)]
    return {
        "rows": COLLAPSE_ROWS,
        "trials": COLLAPSE_TRIALS,
        "generations": list(range(1, generations + 1)),
        "log_det": {
            "mean": log_det.mean(axis=1).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "theory_mean": [float(mean) for mean, _ in told],
            "theory_sd": [float(variance) ** 0.5 for _, variance in told],
        },
        "ellipses": [
            {"generation": t, "cov": path.cov[t - 1, 0].tolist(), "mean": path.mean[t - 1, 0].tolist()}
            for t in COLLAPSE_AT
        ],
    }
