"""Stage 6: the loops in which a model is trained on its own output, each beside its control."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmlab.autophagy.options import AutophagyOptions
from lmlab.lab.corpus import read_documents
from lmlab.lab.progress import Advance
from lmlab.lab.recipe import Recipe
from lmlab.lab.sources import CorpusError
from lmlab.lab.steps.job import Job
from lmlab.model.errors import ConfigError
from lmlab.model.fields import to_plain

VERSION = 2  # samples, modes, maps and each seed's values in the result
INPUTS = ("corpus",)
HELD_OUT_BYTES = 100_000  # of the text that each generation is measured on


def settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    options = recipe.autophagy
    found = {"autophagy": to_plain(options), "seed": recipe.seed}
    if options is not None and options.generator == "decoder":  # it is trained as the recipe's model is
        model, train = to_plain(recipe.model), to_plain(recipe.train)
        del model["vocab_size"], train["save_every"], train["keep"], train["eval_every"]
        found |= {"model": model, "train": train}
    return found, []


def check(recipe: Recipe) -> None:
    """ConfigError for what the loops would refuse after the hours before them."""
    from lmlab.autophagy import study

    if recipe.autophagy is None:
        return
    try:
        study.check(recipe.autophagy)
    except (ValueError, TypeError) as error:
        raise ConfigError("autophagy.metrics", f"isn't accepted: {error}") from None


def work(job: Job) -> dict[str, Any]:
    from lmlab.autophagy import DataExhausted
    from lmlab.autophagy.study import byte_decoder, study
    from lmlab.lab.steps.evaluate import first_documents

    options, corpus, loops = job.recipe.autophagy, job.inputs["corpus"], job.out / "loops"
    assert options is not None  # the pipeline leaves the stage out without the table
    try:
        with (
            job.display.work(job.label, _size(options)) as advance,
            job.warnings_to_log(),
            _watched(loops, advance),
        ):
            return study(
                options,
                read_documents(corpus / "train.jsonl"),
                first_documents(corpus / "held_out.jsonl", HELD_OUT_BYTES),
                seed=job.recipe.seed,
                decoder=(
                    byte_decoder(options, job.recipe.model, job.recipe.train)
                    if options.generator == "decoder"
                    else None
                ),
                out=loops,
                workers=job.workers,
            )
    except DataExhausted as error:
        if options.generator in ("ngram", "decoder"):
            short, mend = f"text, in rows of {options.row_length} bytes", "Give more text, lower row_length,"
        else:
            short, mend = "rows than its data set has", "Lower"
        raise CorpusError(
            f"[autophagy] needs more {short}: {error}. {mend} n_real, n_synth or generations, or set control = false"
        ) from error


def _size(options: AutophagyOptions) -> int:
    """Generations of all arms and seeds."""
    loops = len(options.loops) * (2 if options.control else 1)
    return loops * len(options.bias) * options.seeds * options.generations


@contextmanager
def _watched(loops: Path, advance: Advance) -> Iterator[None]:
    """Move the bar while the block runs: each generation that is done is one file more."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            advance(sum(1 for _ in loops.glob("*/seed-*/gen-*.npz")), "generations")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
