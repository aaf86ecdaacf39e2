"""Which files a corpus is made of. A path is read only if it is a regular file: a loop of links, a device or a
FIFO is named and passed over, never read for ever.
"""

from __future__ import annotations

import errno
import glob as globbing
import hashlib
import io
import lzma
import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from lmlab.lab.options import CorpusOptions
from lmlab.lab.stages import file_sha256

SUFFIXES = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


class CorpusError(ValueError):
    """The corpus can't be used; says what was found and what is needed."""


@dataclass(frozen=True)
class Source:
    """One file of the corpus. `open` gives its bytes; `name` is for people, never for a key."""

    name: str
    format: str  # text, lines, jsonl or parquet
    open: Callable[[], BinaryIO]
    sha256: str


@dataclass
class Skipped:
    """What was left out, by reason, with the first place of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, place)

    def __str__(self) -> str:
        return ", ".join(f"{n} {reason} (first: {self.first[reason]})" for reason, n in self.counts.items())


def find_sources(options: CorpusOptions, folder: Path, fetched: Path) -> tuple[list[Source], Skipped]:
    """The files of a corpus, in an order that doesn't depend on where they lie.

    A relative path is relative to `folder` (the recipe's); `fetched` holds what `lmlab data fetch` brought.
    """
    skipped = Skipped()
    if options.path is None:
        name = options.name or "sample"
        if name == "sample" or name.startswith("sample-"):
            return embedded_sources(name), skipped
        path = fetched / name / f"{name}.jsonl"
        if not path.is_file():
            raise CorpusError(
                f"no corpus {name!r}: it is none of 'sample', 'recall' and 'passages', and {path} doesn't exist. "
                f"Fetch it with `lmlab data fetch {name}`, or give corpus.path"
            )
        paths = [path]
    else:
        paths = _expand(options.path, folder, skipped)
    sources = [source for path in paths if (source := _source(path, options, skipped, len(paths) > 1))]
    if not sources:
        where = options.path or options.name
        reasons = f" Left out: {skipped}." if skipped.counts else ""
        raise CorpusError(f"no text in {where!r}.{reasons}")
    return sources, skipped


def _expand(text: str, folder: Path, skipped: Skipped) -> list[Path]:
    """A file, a directory or a glob, as sorted paths."""
    if "\0" in text:
        raise CorpusError(f"corpus.path holds a NUL character: {text!r}")
    path = folder / Path(text).expanduser()
    if path.is_dir():
        return _walk(path, skipped)
    if path.is_symlink() or path.exists():
        return [path]
    if globbing.has_magic(text):
        found = sorted(Path(p) for p in globbing.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
        return [p for f in found for p in (_walk(f, skipped) if f.is_dir() else [f])]
    raise CorpusError(f"corpus.path {text!r}: no such file or directory ({path})")


def _walk(root: Path, skipped: Skipped) -> list[Path]:
    """All files under `root`, sorted by relative path. Links to directories aren't followed, so none loops."""
    found: list[Path] = []
    for directory, names, files in os.walk(root):
        for name in list(names):
            if (Path(directory) / name).is_symlink():
                names.remove(name)
                skipped.add("link to a directory", str(Path(directory, name)))
            elif name.startswith("."):
                names.remove(name)
        found += [Path(directory, name) for name in files if not name.startswith(".")]
    return sorted(found, key=lambda p: p.relative_to(root).as_posix())


def _source(path: Path, options: CorpusOptions, skipped: Skipped, many: bool) -> Source | None:
    """The source at `path`, or None with its reason counted."""
    format_: str = options.format
    if format_ == "auto":
        found = SUFFIXES.get(path.suffix.lower())
        if found is None and many:
            skipped.add("unknown kind of file", str(path))
            return None
        format_ = found or "text"
    try:
        open_regular(path).close()
        sha = file_sha256(path)
    except NotRegular as error:
        skipped.add(str(error), str(path))
        return None
    except OSError as error:
        skipped.add("unreadable file", f"{path}: {error.strerror}")
        return None
    return Source(str(path), format_, lambda: open_regular(path), sha)


class NotRegular(OSError):
    """A path that isn't a regular file; its text is the reason."""


def open_regular(path: Path) -> BinaryIO:
    """`path` opened for reading if it is a regular file. A FIFO without a writer doesn't block the call."""
    try:
        kind = path.stat().st_mode  # follows links; a loop is ELOOP
        if not stat.S_ISREG(kind):
            raise NotRegular(_kind(kind))
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except RuntimeError as error:  # Python < 3.13 may say a loop of links in this way
        raise NotRegular("loop of links") from error
    except NotRegular:
        raise
    except OSError as error:
        if path.is_symlink():
            raise NotRegular(_link_reason(error)) from error
        raise
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):  # exchanged between stat and open
        os.close(descriptor)
        raise NotRegular(_kind(kind))
    return os.fdopen(descriptor, "rb")


def _link_reason(error: OSError) -> str:
    return "loop of links" if error.errno == errno.ELOOP else "broken link"


def _kind(mode: int) -> str:
    kinds = [
        (stat.S_ISDIR, "directory"),
        (stat.S_ISFIFO, "FIFO"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "device"),
        (stat.S_ISBLK, "device"),
    ]
    return next((name for test, name in kinds if test(mode)), "not a regular file")


def embedded_sources(wanted: str = "sample") -> list[Source]:
    """The text that ships with the package: Tang poems and the King James Bible, or one of them alone
    ("sample-tang", "sample-kjv")."""
    folder = resources.files("lmlab.lab") / "data"
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".txt.xz"))
    if not names:
        raise CorpusError("the package's own sample text is missing: lmlab was not installed whole")
    alone = {f"sample-{name.partition('.')[0]}": [name] for name in names} | {"sample": names}
    if wanted not in alone:
        raise CorpusError(f"no corpus {wanted!r} in the package; it has {', '.join(sorted(alone))}")
    sources = []
    for name in alone[wanted]:
        data = lzma.decompress((folder / name).read_bytes())
        sha = hashlib.sha256(data).hexdigest()
        sources.append(Source(name.removesuffix(".xz"), "text", partial(io.BytesIO, data), sha))
    return sources
