"""What every stage is given."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmlab.lab.journal import Journal
from lmlab.lab.progress import Display
from lmlab.lab.recipe import Recipe
from lmlab.retry import Retry


@dataclass(frozen=True)
class Job:
    """One stage of one variant and seed.

    `inputs`: the directories of the earlier stages that this one reads, by stage name; `out`: the directory
    to fill; `label`: what the progress bar is called.
    """

    recipe: Recipe
    inputs: Mapping[str, Path]
    out: Path
    journal: Journal
    display: Display
    stage: str
    label: str
    retry: Retry  # for writes and workers, from [retry]
    workers: int = 1  # processes that the stage may use
    tensorboard: Path | None = None  # where training writes its scalars, if it shall

    @contextmanager
    def warnings_to_log(self) -> Iterator[None]:
        """Warnings raised in the block become lines of the log (and of the report), each text once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for text in dict.fromkeys(str(w.message) for w in caught):
            self.journal.warn(self.stage, text)
            self.display.say(f"{self.label}: warning: {text}")
