"""The progress of work in other processes: they append to a file, and the one that has the terminal reads along."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

from lmlab.lab.journal import Journal
from lmlab.lab.progress import Advance, Display

_EVERY = 0.5  # seconds between two reports of one piece of work, and between two looks at the file


class Relay(Display):
    """The display of a process without a terminal. A report that can't be written is left out."""

    def __init__(self, path: Path) -> None:
        super().__init__(quiet=True)
        self.reports = Journal(path)

    @contextmanager
    def work(self, name: str, total: int | None = None) -> Iterator[Advance]:
        last = -_EVERY

        def advance(done: int, note: str = "") -> None:
            nonlocal last
            if monotonic() - last >= _EVERY:
                last = monotonic()
                self._tell(name=name, done=done, note=note)

        self._tell(name=name, total=total)
        yield advance
        self._tell(name=name, end=True)

    def _tell(self, **fields: Any) -> None:
        with suppress(OSError):
            self.reports.write(None, "progress", **fields)


@contextmanager
def followed(path: Path, display: Display) -> Iterator[None]:
    """While the block runs, `display` shows what every `Relay(path)` reports. The file is removed after it."""
    path.write_bytes(b"")
    over = threading.Event()
    reader = threading.Thread(target=_follow, args=(path, display, over), daemon=True)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()
        path.unlink(missing_ok=True)


def _follow(path: Path, display: Display, over: threading.Event) -> None:
    shown: dict[str, tuple[AbstractContextManager[Advance], Advance]] = {}
    with path.open("rb") as file:
        rest, last = b"", False
        while not last:
            last = over.wait(_EVERY)
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                with suppress(ValueError):  # cut short by a full disk
                    _show(json.loads(line), display, shown)


def _show(
    told: dict[str, Any], display: Display, shown: dict[str, tuple[AbstractContextManager[Advance], Advance]]
) -> None:
    name = told["name"]
    if "total" in told and name not in shown:  # begun again by another process: the same bar goes on
        work = display.work(name, told["total"])
        shown[name] = work, work.__enter__()
    elif "done" in told and name in shown:
        shown[name][1](told["done"], told["note"])
    elif "end" in told and name in shown:
        shown.pop(name)[0].__exit__(None, None, None)
