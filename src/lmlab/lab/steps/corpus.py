"""Stage 1: raw text becomes documents, some of them held out."""

from __future__ import annotations

from typing import Any

from lmlab.lab.corpus import VERSION as VERSION
from lmlab.lab.corpus import make_corpus
from lmlab.lab.fetch import data_folder
from lmlab.lab.recipe import Recipe
from lmlab.lab.sources import Skipped, Source, find_sources
from lmlab.lab.steps.job import Job
from lmlab.lab.steps.recall import passages_source, recall_source
from lmlab.model.fields import to_plain

INPUTS: tuple[str, ...] = ()
MADE = {"recall": recall_source, "passages": passages_source}


def settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """All of [corpus] but where it lies, and the SHA-256 of the files, in order."""
    options = to_plain(recipe.corpus)
    del options["path"], options["name"]
    sources, _ = sources_of(recipe)
    formats = [source.format for source in sources]
    return options | {"seed": _seed(recipe), "formats": formats}, [source.sha256 for source in sources]


def work(job: Job) -> dict[str, Any]:
    sources, skipped = sources_of(job.recipe)
    with job.display.work(job.label):
        result = make_corpus(sources, skipped, job.recipe.corpus, _seed(job.recipe), job.out)
    if skipped.counts:
        job.journal.warn("corpus", f"left out: {skipped}")
    return result


def sources_of(recipe: Recipe) -> tuple[list[Source], Skipped]:
    """The files of a recipe's text; MADE are made on the spot, for the trained length."""
    if recipe.corpus.path is None and recipe.corpus.name in MADE:
        make = MADE[recipe.corpus.name]
        return [make(recipe.train.length, _seed(recipe), recipe.corpus.max_bytes)], Skipped()
    return find_sources(recipe.corpus, recipe.folder, data_folder())


def _seed(recipe: Recipe) -> int:
    return recipe.seed if recipe.corpus.seed is None else recipe.corpus.seed
