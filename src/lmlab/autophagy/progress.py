"""One bar for each job, also for jobs in other processes."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class _FileTick:
    """A finished generation is one byte more in a file: a channel that every backend has."""

    path: Path

    def __call__(self) -> None:
        with self.path.open("ab") as file:
            file.write(b".")


class Bars:
    """A context: bars on the terminal while the jobs run. Not shown, it costs nothing."""

    def __init__(self, titles: Sequence[str], sizes: Sequence[tuple[int, int]], *, shown: bool) -> None:
        self.titles, self.sizes = titles, sizes
        self.shown = shown and bool(titles)
        self._stop = threading.Event()

    def __enter__(self) -> Bars:
        if self.shown:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._folder = tempfile.TemporaryDirectory(prefix="lmlab-progress-")
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            )
            self._tasks: list[Any] = [
                self._progress.add_task(title, completed=done, total=total)
                for title, (done, total) in zip(self.titles, self.sizes, strict=True)
            ]
            self._progress.start()
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def tick(self, job: int, *, across: bool) -> Callable[[], None] | None:
        """What the job calls after each generation; `across`: from another thread or process."""
        if not self.shown:
            return None
        if across:
            return _FileTick(Path(self._folder.name) / str(job))
        return lambda: self._progress.advance(self._tasks[job])

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self._read()

    def _read(self) -> None:
        for job, (done, _) in enumerate(self.sizes):
            path = Path(self._folder.name) / str(job)
            if path.exists():
                self._progress.update(self._tasks[job], completed=done + path.stat().st_size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown:
            self._stop.set()
            self._watcher.join()
            self._read()
            self._progress.stop()
            self._folder.cleanup()
