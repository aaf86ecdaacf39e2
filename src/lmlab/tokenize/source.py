"""Where training text comes from: files, directories, or texts at hand; never much of it in memory at once."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from lmlab.tokenize.checks import check_text, normalized, refuse_surrogate

SUFFIXES = (".txt", ".md", ".jsonl")
BLOCK = 1 << 20  # bytes that are read at once, and about what a block of small texts holds
LONGEST_PART = 4 << 20  # a longer line of a text file is handed on in parts

Block = tuple[tuple[str | bytes, ...], int]


class Source:
    """Text that can be read in blocks, again if `again` is true.

    A block is (texts, how many texts of the source they are): a file of lines comes in parts of many lines.
    Lines of JSONL and files of a directory that can't be used are counted in `skipped`; `first_skipped` says
    where the first one is and what was wrong. `longest_line`: JSONL lines with more bytes are skipped, too.
    """

    def __init__(
        self, source: Any, *, field: str, normalize: str | None, longest_line: int = 1 << 30
    ) -> None:
        self._field = field
        self._normalize = normalize
        self._longest_line = longest_line
        self.skipped = 0
        self.first_skipped = ""
        self.bytes_read = 0  # of files, in the present pass
        self._files: list[Path] | None = None
        self._of_directories: set[Path] = (
            set()
        )  # files that nobody named: one that can't be read is passed over
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

    def _found(self, path: Path) -> list[Path]:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
            self._of_directories.update(found)
            return found
        if not path.exists():
            raise FileNotFoundError(
                f"source {os.fspath(path)!r} is no file or directory (a text at hand is [text])"
            )
        return [path]

    def size(self) -> int | None:
        """Bytes of all files, or None for texts at hand."""
        return None if self._files is None else sum(file.stat().st_size for file in self._files)

    def identity(self) -> list[Any]:
        """What tells this source from another one: of files path, size and time of change; else the length."""
        if self._files is None:
            return [len(self._texts) if isinstance(self._texts, Sequence) else None]
        known = [(file.resolve(), file.stat()) for file in self._files]
        return [[os.fspath(path), told.st_size, told.st_mtime_ns] for path, told in known]

    def blocks(self) -> Iterator[Block]:
        self.skipped, self.first_skipped, self.bytes_read = 0, "", 0
        if self._files is None:
            yield from _together(self._at_hand())
            return
        for file in self._files:
            try:
                if file.suffix == ".jsonl":
                    yield from _together(self._jsonl(file))
                else:
                    yield from self._lines(file)
            except OSError as error:
                if file not in self._of_directories:
                    raise
                self._skip(f"{file}: {error}")

    def _at_hand(self) -> Iterator[str | bytes]:
        for i, text in enumerate(self._texts):
            check_text(text, f"source[{i}]")
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    refuse_surrogate([text], "source", first=i)
            yield normalized(text, self._normalize)

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

    def _lines(self, file: Path) -> Iterator[Block]:
        rest = b""
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                self.bytes_read += len(block)
                rest += block
                end = rest.rfind(b"\n") + 1
                if end == 0 and len(rest) > LONGEST_PART:
                    end = len(rest) - _open_bytes(rest)
                if end:
                    yield (self._text(rest[:end]),), rest.count(b"\n", 0, end)
                    rest = rest[end:]
        if rest:
            yield (self._text(rest),), 1

    def _text(self, block: bytes) -> str | bytes:
        if self._normalize is None:
            return block
        try:
            return cast(str, normalized(block.decode(), self._normalize))
        except UnicodeDecodeError:
            return block

    def _jsonl(self, file: Path) -> Iterator[str]:
        with file.open("rb") as stream:
            for number, line in enumerate(self._json_lines(stream), 1):
                if line.isspace():
                    continue
                try:
                    if len(line) > self._longest_line:
                        raise ValueError(f"a line of more than {self._longest_line} bytes, memory_limit / 16")
                    text = json.loads(line)[self._field]
                    if not isinstance(text, str):
                        raise TypeError(f"{self._field!r} is {type(text).__name__}, not a string")
                    text.encode()
                except (ValueError, KeyError, TypeError) as error:
                    self._skip(f"{file}:{number}: {type(error).__name__}: {error}")
                    continue
                yield normalized(text, self._normalize)

    def _json_lines(self, stream: BinaryIO) -> Iterator[bytes]:
        """Lines; one that is too long comes cut, with one byte too many, and its rest is passed over."""
        while line := stream.readline(self._longest_line + 1):
            self.bytes_read += len(line)
            part = line
            while len(part) > self._longest_line and not part.endswith(b"\n"):
                part = stream.readline(self._longest_line + 1)
                self.bytes_read += len(part)
            yield line


def _together(texts: Iterable[str | bytes]) -> Iterator[Block]:
    """Small texts in blocks of about BLOCK bytes."""
    block: list[str | bytes] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text) + 64
        if size >= BLOCK:
            yield tuple(block), len(block)
            block, size = [], 0
    if block:
        yield tuple(block), len(block)


def _open_bytes(block: bytes) -> int:
    """How many bytes at the end belong to a character that is not complete (0 to 3)."""
    for back in range(1, min(4, len(block)) + 1):
        byte = block[-back]
        if byte >= 0xC0:
            return back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0
