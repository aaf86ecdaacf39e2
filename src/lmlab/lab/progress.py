"""What a person sees while a run goes on: one bar for each piece of work, with its rate and the time left.

On a terminal the bars move (rich); elsewhere a line appears now and then; `quiet` shows nothing at all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

Advance = Callable[..., None]  # advance(done, note="") with `done` out of the total
_LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class Display:
    """The terminal of one run. Use as a context manager; `say` prints a line above the bars."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        if self.quiet:
            return
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def work(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """A bar for the time of the block; `total` None: no end is known."""
        if self.quiet:
            yield lambda done, note="": None
        elif self._bars is not None:
            bars, task = self._bars, self._bars.add_task(name, total=total, note="")
            yield lambda done, note="": bars.update(task, completed=done, note=note)
            bars.update(task, completed=total if total is not None else 1, total=total or 1)
        else:
            start = monotonic()
            yield _lines(self.say, name, total, start)
            self.say(f"{name}: done in {clock(monotonic() - start)}")


def _lines(say: Callable[[str], None], name: str, total: int | None, start: float) -> Advance:
    """An advance that prints a line at most every `_LINE_EVERY` seconds."""
    last, first_done = start, None

    def advance(done: int, note: str = "") -> None:
        nonlocal last, first_done
        now = monotonic()
        if first_done is None:
            first_done = done  # a resumed run begins in the middle
        if total is None or now - last < _LINE_EVERY or done >= total:
            return
        last = now
        rate = (done - first_done) / (now - start)
        left = f", {clock((total - done) / rate)} left" if rate > 0 else ""
        say(f"{name}: {done}/{total} {note}{left}")

    return advance


def clock(seconds: float) -> str:
    """`75.2` as `1:15`, `3.25` as `3.2 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
