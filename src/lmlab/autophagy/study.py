"""The laboratory's stage: from the recipe's table and a text to plain numbers for the report."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmlab.autophagy import figures, shown
from lmlab.autophagy.filters import BestOf, Filter
from lmlab.autophagy.generators.decoder import DecoderLM
from lmlab.autophagy.generators.diffusion import Diffusion
from lmlab.autophagy.generators.gaussian import Gaussian
from lmlab.autophagy.generators.kde import KDE
from lmlab.autophagy.generators.mixture import GaussianMixture
from lmlab.autophagy.generators.ngram import NGram
from lmlab.autophagy.generators.protocol import Generator
from lmlab.autophagy.history import History
from lmlab.autophagy.loops import (
    Accumulate,
    Augmentation,
    Contamination,
    Fresh,
    Loop,
    Memory,
    RealOnly,
    Subsample,
    Synthetic,
    Weighted,
)
from lmlab.autophagy.metrics.named import check_rows, resolve
from lmlab.autophagy.options import AutophagyOptions
from lmlab.autophagy.random import rng_for
from lmlab.autophagy.runner import sweep

if TYPE_CHECKING:
    from lmlab.model import DecoderConfig
    from lmlab.train import TrainConfig

# The maps of a gaussian: d, trials, and the numbers of rows. Below n = 2d the distance isn't that of first order.
MAPS = (
    (1, 20_000, (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)),
    (100, 4, (200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)),
)


def study(
    options: AutophagyOptions,
    train: Iterable[str | bytes],
    held_out: Iterable[str | bytes],
    *,
    seed: int = 0,
    encode: Callable[[str | bytes], Sequence[int]] | None = None,
    decoder: Generator | None = None,
    out: str | Path | None = None,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """`{"arms": [...], "collapse": {...}, "real": …}` for the report; every number is finite or None.

    Of a gaussian also "phase" and "memory", a list with one of each bias (`figures.phase`, `figures.memory`).
    real: held-out rows beside which the arms' samples are shown (`shown.samples`).

    train, held_out: documents. encode: text to ids for ngram (None: its UTF-8 bytes) and for a decoder that
    was given. decoder: the template that generator = "decoder" trains; None: `byte_decoder(options)`.
    """
    generator, data, real = material(options, train, held_out, seed=seed, encode=encode, decoder=decoder)
    found: dict[str, Any] = {
        "arms": arms(options, generator, data, real, seed=seed, out=out, workers=workers, progress=progress),
        "collapse": figures.collapse(seed=seed),
        "real": shown.rows_of(options.generator, real),
    }
    if options.generator == "gaussian":
        found["phase"] = [
            figures.phase(rows, rows, bias=bias, d=d, trials=trials, seed=seed)
            for bias in options.bias
            for d, trials, rows in MAPS
        ]
        found["memory"] = [figures.memory(bias=bias, seed=seed) for bias in options.bias]
    return found


def arms(
    options: AutophagyOptions,
    generator: Generator,
    data: np.ndarray | Generator,
    held_out: np.ndarray,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    workers: int = 1,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Every loop of the options with every bias, each with its control beside it.

    All are measured on n_real rows, whatever they were trained on: diversity depends on how many one takes.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="lmlab-loops-") as folder:
            return arms(
                options, generator, data, held_out, seed=seed, out=folder, workers=workers, progress=progress
            )
    loops: dict[str, Loop] = {name: loop_of(name, options) for name in options.loops}
    if options.control:
        loops |= {f"{name}-control": RealOnly(loop) for name, loop in loops.items()}
    filters: tuple[Filter, ...] = (BestOf(options.best_of, kinds, 0.0),) if options.best_of > 1 else ()
    histories = sweep(
        loops, generator, data, biases=options.bias, generations=options.generations,
        seeds=range(seed, seed + options.seeds), metrics=options.metrics, held_out=held_out, filters=filters,
        n_eval=options.n_real, out=out, workers=workers, progress=progress,
    )  # fmt: skip
    return [_arm(name, bias, options, history) for (name, bias), history in histories.items()]


def _arm(name: str, bias: float, options: AutophagyOptions, history: History) -> dict[str, Any]:
    return {
        "loop": name.removesuffix("-control"),
        "bias": bias,
        "control": name.endswith("-control"),
        "generations": list(range(1, options.generations + 1)),
        "seeds": options.seeds,
        "metrics": {
            metric: {
                "mean": _finite(history.mean(metric)),
                "sem": _finite(history.sem(metric)),
                "values": [_finite(values) for values in history[metric]],
            }
            for metric in history.metrics
        },
        "samples": shown.samples(options.generator, history, bias),
        "modes": shown.modes(options.generator, history, bias),
    }


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def kinds(rows: np.ndarray) -> np.ndarray:
    """How many different values each row holds: the reward of `best_of`."""
    ordered = np.sort(rows, axis=1)
    return np.asarray(1.0 + (np.diff(ordered, axis=1) != 0).sum(axis=1))


def loop_of(name: str, options: AutophagyOptions) -> Loop:
    """The loop that the options name, with their sizes, memory and weight."""
    first = options.n_initial or None
    loops: dict[str, Callable[[], Loop]] = {
        "synthetic": lambda: Synthetic(options.n_synth, first),
        "augmentation": lambda: Augmentation(options.n_real, options.n_synth),
        "fresh": lambda: Fresh(options.n_real, options.n_synth, first),
        "accumulate": lambda: Accumulate(options.n_synth, first),
        "subsample": lambda: Subsample(options.n_synth, None, first),
        "contamination": lambda: Contamination(options.n_real + options.n_synth, options.synthetic),
    }
    loop = loops[name]()
    if options.memory > 1:
        loop = Memory(loop, options.memory)
    if options.weight > 0 and name != "subsample":
        loop = Weighted(loop, options.weight)
    return loop


# ---------------------------------------------------------------- data and model
def byte_decoder(
    options: AutophagyOptions, model: DecoderConfig | None = None, training: TrainConfig | None = None
) -> DecoderLM:
    """The template of generator = "decoder": `model` and `training` (None: their defaults) over bytes.

    Ids are the 256 bytes and an end token; windows are one row long. It is trained for as many passes as
    `training.steps` would make over n_real rows, so that a loop with more rows doesn't see each less often.
    """
    from lmlab.model import DecoderConfig
    from lmlab.train import TrainConfig

    length = options.row_length + 1
    config = DecoderConfig(vocab_size=257) if model is None else replace(model, vocab_size=257)
    config = replace(config, max_length=max(config.max_length, length))
    training = replace(TrainConfig() if training is None else training, length=length)
    return DecoderLM(config, training, epochs=training.steps * training.batch_size / options.n_real)


def template(options: AutophagyOptions, vocab_size: int = 256) -> Generator:
    """The untrained generator that the options name."""
    made: dict[str, Callable[[], Generator]] = {
        "gaussian": Gaussian,
        "mixture": lambda: GaussianMixture(figures.GRID**2),
        "kde": KDE,
        "ngram": lambda: NGram(vocab_size, order=4),
        "decoder": lambda: byte_decoder(options),
        "diffusion": lambda: Diffusion(64, classes=10),
    }
    return made[options.generator]()


def check(options: AutophagyOptions) -> None:
    """Refuse metrics that the generator or its rows cannot have, before any work: ValueError or TypeError."""
    resolve(options.metrics, template(options))
    rows = np.zeros(
        (options.n_real, 1), np.int64 if options.generator in ("ngram", "decoder") else np.float64
    )
    check_rows(options.metrics, rows)


def material(
    options: AutophagyOptions,
    train: Iterable[str | bytes],
    held_out: Iterable[str | bytes],
    *,
    seed: int = 0,
    encode: Callable[[str | bytes], Sequence[int]] | None = None,
    decoder: Generator | None = None,
) -> tuple[Generator, np.ndarray | Generator, np.ndarray]:
    """The template, the real rows (or law) and the held-out rows that the options' generator needs.

    ngram, decoder: rows of the text. gaussian: N(0, I) in two dimensions; mixture, kde: the 25 modes of
    `figures.grid_law`. diffusion: the 8 × 8 digits that scikit-learn brings, a quarter of them held out.
    """
    if options.generator in ("ngram", "decoder"):
        encode = None if options.generator == "decoder" and decoder is None else encode
        pool = token_rows(train, options.row_length, encode)
        real = token_rows(held_out, options.row_length, encode)
        if options.generator == "decoder" and decoder is not None:
            return decoder, pool, real
        vocab_size = 256 if encode is None else 1 + int(max(pool.max(), real.max()))
        return template(options, vocab_size), pool, real
    rng = rng_for(seed, 0, "held-out")
    if options.generator == "diffusion":
        rows = _digits()[rng.permutation(1797)]
        return template(options), rows[449:].copy(), rows[:449].copy()
    law: Generator = figures.grid_law()
    if options.generator == "gaussian":
        law = Gaussian(mean=[0.0, 0.0], cov=[[1.0, 0.0], [0.0, 1.0]])
    return template(options), law, law.sample(options.n_real, 1.0, rng)


def _digits() -> np.ndarray:
    """[1797 65]: 64 grey values in [0, 1], then the label."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'lmlab[mixture]'") from error
    values, labels = load_digits(return_X_y=True)
    return np.column_stack([values / 16.0, labels])


def token_rows(
    documents: Iterable[str | bytes],
    length: int,
    encode: Callable[[str | bytes], Sequence[int]] | None = None,
) -> np.ndarray:
    """All documents one after another, cut into rows of `length` ids; what is left over is dropped."""
    pieces: list[np.ndarray] = []
    for document in documents:
        if encode is None:
            raw = document.encode() if isinstance(document, str) else document
            pieces.append(np.frombuffer(raw, dtype=np.uint8).astype(np.int64))
        else:
            pieces.append(np.asarray(encode(document), dtype=np.int64))
    ids = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
    rows = ids.size // length
    if rows == 0:
        raise ValueError(f"the text has {ids.size} ids, fewer than one row of row_length {length}")
    return ids[: rows * length].reshape(rows, length)
