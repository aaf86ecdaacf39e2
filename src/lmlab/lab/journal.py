"""log.jsonl: what happened, one object a line, appended; a line that a kill cut in two is dropped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmlab.lab.stages import finite


class Journal:
    """Appends to a log file. Each line is one `write` to a descriptor in append mode, so several processes
    can share the file."""

    def __init__(self, path: Path, **fixed: Any) -> None:
        self.path = path
        self.fixed = fixed  # fields that every line of this journal carries

    def write(self, stage: str | None, event: str, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = {"time": now, "stage": stage, "event": event} | self.fixed | fields
        line = json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            error.filename = str(self.path)  # of a write the system names no file
            raise
        finally:
            os.close(descriptor)

    def warn(self, stage: str, text: str) -> None:
        self.write(stage, "warning", text=text)

    def mend(self) -> None:
        """Cut off a last line that has no end: the process that wrote it was killed."""
        if not self.path.exists():
            return
        with self.path.open("rb+") as file:
            data = file.read()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                file.truncate(whole)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a broken line is passed over."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
