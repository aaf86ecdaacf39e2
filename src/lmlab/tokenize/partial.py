"""Where a training has come to, kept in a directory, so that a killed one goes on instead of beginning anew.

`sample.npz` holds the sample and the seeds and is written once; `state.npz` is written after each round, and
now and then while all of the source is counted. Each takes its name when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.retry import atomic_write

VERSION = 1


@dataclass
class Place:
    """How far a training is. rounds: what each round found; tokens: of the last count."""

    round: int = 0
    shrunk: bool = False  # the rounds are done
    passes: int = 0  # over all of the source, finished
    blocks: int = 0  # counted in the present pass
    tokens: float = 0.0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0


class Partial:
    """The directory `path`, or nothing at all where it is None. `key` names the source and the arguments."""

    def __init__(self, path: str | os.PathLike[str] | None, key: str) -> None:
        self._path = None if path is None else Path(path)
        self._key = key

    def load(self, learner: Any) -> Place | None:
        """Puts what was kept into `learner` and says where it is; None if there is nothing yet."""
        if self._path is None or not (self._path / "state.npz").exists():
            return None
        try:
            state = self._read("state.npz")
            if str(state["key"]) == self._key:
                sample = self._read("sample.npz")
                learner.restore(sample, state["members"], state["counts"], state["scores"])
                return Place(**json.loads(str(state["place"])))
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"the state in {self._path} is damaged ({error}): remove it to begin anew"
            ) from None
        raise ValueError(
            f"the state in {self._path} is that of a training with another source or other arguments: remove it "
            "to begin anew, or give another place"
        )

    def begin(self, learner: Any, place: Place) -> None:
        """Keeps the sample and the seeds."""
        if self._path is None:
            return
        self._path.mkdir(parents=True, exist_ok=True)
        self._write("sample.npz", learner.sample())
        self.save(learner, place)

    def save(self, learner: Any, place: Place) -> None:
        """Keeps where `learner` is."""
        if self._path is None:
            return
        members, counts, scores = learner.state()
        told = {"key": np.array(self._key), "place": np.array(json.dumps(asdict(place)))}
        self._write("state.npz", {"members": members, "counts": counts, "scores": scores, **told})

    def remove(self) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)

    def _read(self, name: str) -> dict[str, Any]:
        assert self._path is not None
        with (self._path / name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    def _write(self, name: str, arrays: dict[str, Any]) -> None:
        assert self._path is not None
        with atomic_write(self._path / name) as file:
            np.savez(file, **arrays)
