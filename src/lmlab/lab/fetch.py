"""`lmlab data fetch NAME`: a pinned corpus through the ordinary client of its registry. The only network here.

An archive counts only with the SHA-256 that is written below; with another nothing is kept. Archives are read
in memory, member by member, and only members under known paths are looked at: nothing is unpacked to disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lmlab.retry import atomic_write, network


class FetchError(RuntimeError):
    """A corpus could not be brought: says what is missing and what to do."""


@dataclass(frozen=True)
class Corpus:
    """A corpus that can be fetched: the client's command, the file that it leaves, its hash, what to read."""

    name: str
    about: str
    licence: str
    client: str  # the program that brings it
    command: tuple[str, ...]
    archive: str  # the file's name
    sha256: str
    documents: Callable[[bytes], Iterator[str]]


def data_folder() -> Path:
    """Where fetched corpora lie: $LMLAB_DATA, else ~/.cache/lmlab/corpora."""
    given = os.environ.get("LMLAB_DATA")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "lmlab" / "corpora"


def fetch(name: str, *, path: Path | None = None, to: Path | None = None) -> Path:
    """Bring the corpus `name` and return its directory; `corpus.name = NAME` reads it from then on.

    path: the archive, if it is here already (then no client and no network is needed).
    Raises FetchError.
    """
    corpus = CORPORA.get(name)
    if corpus is None:
        raise FetchError(f"no corpus {name!r}; known: {', '.join(CORPORA)}")
    target = (data_folder() if to is None else to) / name
    if path is not None:
        try:
            archive = path.read_bytes()
        except OSError as error:
            raise FetchError(f"{path} can't be read: {error.strerror}") from error
    else:
        archive = _download(corpus)
    found = hashlib.sha256(archive).hexdigest()
    if found != corpus.sha256:
        raise FetchError(f"{corpus.archive} has SHA-256 {found}, expected {corpus.sha256}; nothing was kept")
    _write(corpus, archive, target)
    return target


def _download(corpus: Corpus) -> bytes:
    """The archive, by the ordinary client in an empty directory; tried again where the network fails."""
    program = shutil.which(corpus.client)
    if program is None:
        raise FetchError(
            f"{corpus.name} comes through `{corpus.client}`, which is not installed. Install it, or bring "
            f"{corpus.archive} by other means and give its path: lmlab data fetch {corpus.name} --path FILE"
        )

    def once() -> bytes:
        with tempfile.TemporaryDirectory(prefix="lmlab-fetch-") as folder:
            ran = subprocess.run(
                [program, *corpus.command], cwd=folder, capture_output=True, text=True, check=False
            )
            files = [f for f in Path(folder).iterdir() if f.name == corpus.archive and f.is_file()]
            if ran.returncode != 0 or not files:
                last = " ".join(ran.stderr.split())[-300:] or "no message"
                raise ConnectionError(f"`{corpus.client} {' '.join(corpus.command)}` failed: {last}")
            return files[0].read_bytes()

    try:
        return network(attempts=3, name=f"fetch {corpus.name}").call(once)
    except ConnectionError as error:
        raise FetchError(str(error)) from error


def _write(corpus: Corpus, archive: bytes, target: Path) -> None:
    """`target/NAME.jsonl` and `target/SOURCE.json`, both whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    count = 0
    with atomic_write(target / f"{corpus.name}.jsonl", "w", encoding="utf-8") as file:
        for text in corpus.documents(archive):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count += 1
        if count == 0:
            raise FetchError(f"{corpus.archive} holds no document; nothing was kept")
    told = {
        "name": corpus.name,
        "about": corpus.about,
        "licence": corpus.licence,
        "archive": corpus.archive,
        "sha256": corpus.sha256,
        "documents": count,
    }
    with atomic_write(target / "SOURCE.json", "w", encoding="utf-8") as file:
        json.dump(told, file, ensure_ascii=False, indent=1)


def members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the regular files of a tar archive, in the order of their paths.

    Raises FetchError if a member, of whatever kind, or a link's target lies outside the archive's directory.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            infos = tar.getmembers()
            for info in infos:
                links = [str(PurePosixPath(info.name).parent / info.linkname)] if info.issym() else []
                for name in (info.name, *links, *([info.linkname] if info.islnk() else [])):
                    if not _inside(name):
                        raise FetchError(
                            f"the archive's member {info.name!r} leads outside; nothing was kept"
                        )
            for info in sorted((i for i in infos if i.isfile()), key=lambda i: i.name):
                file = tar.extractfile(info)
                if file is not None:
                    yield info.name.removeprefix("./"), file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FetchError(f"the archive can't be read: {error}") from error


def _inside(name: str) -> bool:
    depth = 0
    if name.startswith("/") or "\0" in name:
        return False
    for part in PurePosixPath(name).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True


def _tang(archive: bytes) -> Iterator[str]:
    """Every poem of the Yuding Quan Tangshi: title, author, lines."""
    for name, content in members(archive):
        if re.fullmatch(r"package/dist/yudingquantangshi/json/[^/]+\.json", name):
            for poem in json.loads(content):
                yield "\n".join([poem["title"], poem["author"], *poem["paragraphs"]])


def _kjv(archive: bytes) -> Iterator[str]:
    """Every chapter of the King James Bible: a heading such as "Gen 1", then a verse a line."""
    data = dict(members(_deb_data(archive))).get("usr/lib/bible.data")
    if data is None:
        raise FetchError("the package holds no usr/lib/bible.data; nothing was kept")
    chapter = ""
    verses: list[str] = []
    for line in _bible_text(data).splitlines():
        match = re.match(r"(\d?[A-Za-z]+?)(\d+):\d+ (.*)", line)
        if match is None:
            continue  # the title
        heading = f"{match[1]} {match[2]}"
        if heading != chapter and verses:
            yield "\n".join([chapter, *verses])
            verses = []
        chapter = heading
        verses.append(match[3])
    if verses:
        yield "\n".join([chapter, *verses])


def _deb_data(archive: bytes) -> bytes:
    """The data.tar of a Debian package, an `ar` archive, still compressed as `tarfile` reads it."""
    if not archive.startswith(b"!<arch>\n"):
        raise FetchError("this is no Debian package; nothing was kept")
    at = 8
    while at + 60 <= len(archive):
        name, size = archive[at : at + 16].decode("ascii", "replace").strip(), archive[at + 48 : at + 58]
        length = int(size)
        if name.startswith("data.tar"):
            return archive[at + 60 : at + 60 + length]
        at += 60 + length + length % 2
    raise FetchError("the Debian package holds no data.tar; nothing was kept")


def _bible_text(data: bytes) -> str:
    """bible.data: a table of offsets and blocks of text in the code of the Unix `compress`."""
    if not data.startswith(b"EC02"):
        raise FetchError("bible.data has another format than the one known here; nothing was kept")
    count = struct.unpack_from(">I", data, 0x58)[0]
    starts = struct.unpack_from(f">{count}I", data, 0x5C)
    ends = (*starts[1:], len(data))
    return b"".join(_lzw(data[a:b]) for a, b in zip(starts, ends, strict=True)).decode("ascii")


def _lzw(data: bytes) -> bytes:
    """Decode the body of a `compress` file: codes of 9 to 16 bits, 256 clears the table. Codes come in groups
    of eight, and the rest of a group is lost where the width changes."""
    out = bytearray()
    table = [bytes([b]) for b in range(256)] + [b""]
    width, at, start, before = 9, 0, 0, b""
    while at + width <= 8 * len(data):
        code = int.from_bytes(data[at >> 3 : (at >> 3) + 4], "little") >> (at & 7) & ((1 << width) - 1)
        at += width
        if code == 256:
            at, width, before = at + (start - at) % (8 * width), 9, b""
            start = at
            del table[257:]
            continue
        if code > len(table) or (code == len(table) and not before):
            raise FetchError("bible.data is damaged; nothing was kept")
        entry = table[code] if code < len(table) else before + before[:1]
        if before and len(table) < 1 << 16:
            table.append(before + entry[:1])
            if len(table) == 1 << width and width < 16:
                at += (start - at) % (8 * width)
                start, width = at, width + 1
        out += entry
        before = entry
    return bytes(out)


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            "tang",
            "43,103 poems of the Tang dynasty (Yuding Quan Tangshi, 1707), npm package chinese-poetry 2.0.1",
            "MIT (JackeyGao); the poems are in the public domain",
            "npm",
            ("pack", "--silent", "chinese-poetry@2.0.1"),
            "chinese-poetry-2.0.1.tgz",
            "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
            _tang,
        ),
        Corpus(
            "kjv",
            "the King James Bible by chapter, Debian package bible-kjv-text 4.38",
            "public domain (see /usr/share/doc/bible-kjv-text/copyright)",
            "apt-get",
            ("download", "bible-kjv-text=4.38"),
            "bible-kjv-text_4.38_all.deb",
            "d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a",
            _kjv,
        ),
    )
}
