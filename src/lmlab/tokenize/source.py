"""Where training text comes from: files, directories, or texts at hand."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from lmlab.tokenize.checks import check_text, normalized

SUFFIXES = (".txt", ".md", ".jsonl")
BLOCK = 1 << 20
LONGEST_LINE = 16 << 20  # a longer line of a text file is handed on in parts


class Source:
    """Text that can be read in blocks, again if `again` is true. A block is (text, how many texts it holds).

    Lines of JSONL and files of a directory that can't be used are counted in `skipped`; `first_skipped` says
    where the first one is and what was wrong.
    """

    def __init__(self, source: Any, *, field: str, normalize: str | None) -> None:
        self._field = field
        self._normalize = normalize
        self.skipped = 0
        self.first_skipped = ""
        self._files: list[Path] | None = None
        self._texts: Iterable[Any] = ()
        if isinstance(source, str | os.PathLike):
            self._files = self._found(Path(source))
        elif isinstance(source, Sequence) and source and all(isinstance(s, os.PathLike) for s in source):
            self._files = [file for path in source for file in self._found(Path(path))]
        elif isinstance(source, Iterable) and not isinstance(source, bytes | bytearray):
            self._texts = source
        else:
            raise TypeError(
                "source must be a path, a sequence of paths or an iterable of texts, not "
                f"{type(source).__name__} ({source!r:.60}); one text at hand is [text]"
            )
        self.again = self._files is not None or isinstance(source, Sequence)
        self._in_directory = isinstance(source, str | os.PathLike) and Path(source).is_dir()

    def _found(self, path: Path) -> list[Path]:
        if path.is_dir():
            return sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not path.exists():
            raise FileNotFoundError(
                f"source {os.fspath(path)!r} is no file or directory (a text at hand is [text])"
            )
        return [path]

    def size(self) -> int | None:
        """Bytes of all files, or None for texts at hand."""
        return None if self._files is None else sum(file.stat().st_size for file in self._files)

    def blocks(self) -> Iterator[tuple[str | bytes, int]]:
        self.skipped, self.first_skipped = 0, ""
        if self._files is None:
            for i, text in enumerate(self._texts):
                check_text(text, f"source[{i}]")
                yield normalized(text, self._normalize), 1
            return
        for file in self._files:
            try:
                yield from self._jsonl(file) if file.suffix == ".jsonl" else self._lines(file)
            except OSError as error:
                if not self._in_directory:
                    raise
                self._skip(f"{file}: {error}")

    def warn(self) -> None:
        if self.skipped:
            warnings.warn(
                f"{self.skipped} lines or files of the source were skipped, the first: {self.first_skipped}",
                UserWarning,
                stacklevel=4,
            )

    def _skip(self, place: str) -> None:
        self.skipped += 1
        self.first_skipped = self.first_skipped or place

    def _lines(self, file: Path) -> Iterator[tuple[str | bytes, int]]:
        rest = b""
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                rest += block
                end = rest.rfind(b"\n") + 1
                if end == 0 and len(rest) > LONGEST_LINE:
                    end = len(rest) - _open_bytes(rest)
                if end:
                    yield self._text(rest[:end]), rest.count(b"\n", 0, end)
                    rest = rest[end:]
        if rest:
            yield self._text(rest), 1

    def _text(self, block: bytes) -> str | bytes:
        if self._normalize is None:
            return block
        try:
            return cast(str, normalized(block.decode(), self._normalize))
        except UnicodeDecodeError:
            return block

    def _jsonl(self, file: Path) -> Iterator[tuple[str | bytes, int]]:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.isspace():
                    continue
                try:
                    text = json.loads(line)[self._field]
                    if not isinstance(text, str):
                        raise TypeError(f"{self._field!r} is {type(text).__name__}, not a string")
                    text.encode()
                except (ValueError, KeyError, TypeError) as error:
                    self._skip(f"{file}:{number}: {type(error).__name__}: {error}")
                    continue
                yield normalized(text, self._normalize), 1


def _open_bytes(block: bytes) -> int:
    """How many bytes at the end belong to a character that is not complete (0 to 3)."""
    for back in range(1, min(4, len(block)) + 1):
        byte = block[-back]
        if byte >= 0xC0:
            return back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0
