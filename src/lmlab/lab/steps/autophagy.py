"""Stage 6: the loops in which a model is trained on its own output, each beside its control."""

from __future__ import annotations

from typing import Any

from lmlab.lab.corpus import CorpusError, read_documents
from lmlab.lab.recipe import Recipe
from lmlab.lab.steps.job import Job
from lmlab.model.errors import ConfigError
from lmlab.model.fields import to_plain

VERSION = 2
INPUTS = ("corpus",)


def settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    return {"autophagy": to_plain(recipe.autophagy), "seed": recipe.seed}, []


def work(job: Job) -> dict[str, Any]:
    from lmlab.autophagy import DataExhausted
    from lmlab.autophagy.study import study

    options = job.recipe.autophagy
    assert options is not None  # the pipeline leaves the stage out without the table
    corpus = job.inputs["corpus"]
    with job.display.work(job.label), job.warnings_to_log():
        try:
            return study(
                options,
                read_documents(corpus / "train.jsonl"),
                read_documents(corpus / "held_out.jsonl"),
                seed=job.recipe.seed,
            )
        except DataExhausted as error:
            advice = "lower n_real, n_synth, generations or row_length, or set control = false"
            raise CorpusError(f"[autophagy] {error}; {advice}") from None
        except NotImplementedError as error:
            raise ConfigError("autophagy.generator", str(error)) from None
