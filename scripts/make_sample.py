"""Makes the text that ships with the package: about 1 MB of Tang poems and 1 MB of the King James Bible.

    python scripts/make_sample.py POETRY BIBLE [--out src/lmlab/lab/data]

POETRY: the folder of the npm package chinese-poetry 2.0.1 (`npm pack chinese-poetry@2.0.1`, then unpack it).
BIBLE:  the text of Debian's bible-kjv, one verse a line (`bible -f gen1:1-rev22:21 > kjv.txt`).

Poems are taken at even steps through the collection, so that all its periods and poets are there; only
those whose characters are all among the collection's 3,000 most frequent ones, so that a vocabulary of a
few thousand pieces can hold every character. Of the Bible every fourth chapter is taken. Documents are
divided by two empty lines. The same input gives the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

SEPARATOR = "\n\n\n"
SIZE = 1_000_000
CHARACTERS = 3000
CHAPTER_STEP = 4
BOOKS = (
    "Genesis Exodus Leviticus Numbers Deuteronomy Joshua Judges Ruth 1_Samuel 2_Samuel 1_Kings 2_Kings "
    "1_Chronicles 2_Chronicles Ezra Nehemiah Esther Job Psalms Proverbs Ecclesiastes Song_of_Solomon Isaiah "
    "Jeremiah Lamentations Ezekiel Daniel Hosea Joel Amos Obadiah Jonah Micah Nahum Habakkuk "
    "Zephaniah Haggai Zechariah Malachi Matthew Mark Luke John Acts Romans 1_Corinthians 2_Corinthians "
    "Galatians Ephesians Philippians Colossians 1_Thessalonians 2_Thessalonians 1_Timothy 2_Timothy "
    "Titus Philemon Hebrews James 1_Peter 2_Peter 1_John 2_John 3_John Jude Revelation"
).split()
PUNCTUATION = set("，。？！；：、「」『』《》\n")


def poems(package: Path) -> list[str]:
    """Every poem of the "Yuding Quan Tangshi": title, author, lines."""
    found = []
    for path in sorted((package / "dist" / "yudingquantangshi" / "json").glob("*.json")):
        for poem in json.loads(path.read_text(encoding="utf-8")):
            found.append("\n".join([poem["title"], poem["author"], *poem["paragraphs"]]))
    return found


def common(documents: Sequence[str]) -> list[str]:
    """Those that consist of frequent Chinese characters and plain punctuation alone."""
    counts = Counter(character for document in documents for character in document)
    chinese = [c for c, _ in counts.most_common() if "\u4e00" <= c <= "\u9fff"]
    allowed = set(chinese[:CHARACTERS]) | PUNCTUATION
    return [d for d in documents if len(d.splitlines()) > 2 and allowed.issuperset(d)]


def evenly(documents: Sequence[str], size: int) -> list[str]:
    """Documents at even steps, `size` bytes of them."""
    total = sum(len(d.encode()) + len(SEPARATOR) for d in documents)
    step = total / size
    taken, position = [], 0.0
    while round(position) < len(documents):
        taken.append(documents[round(position)])
        position += step
    return taken


def chapters(verses: str) -> list[str]:
    """The Bible by chapter: a heading such as "Genesis 1", then a verse a line."""
    by_chapter: dict[tuple[str, str], list[str]] = {}
    for line in verses.splitlines():
        match = re.match(r"(\d?[A-Za-z]+?)(\d+):\d+ (.*)", line)
        if match is None:
            raise SystemExit(f"not a verse: {line!r}")
        book, chapter, text = match.groups()
        by_chapter.setdefault((book, chapter), []).append(text)
    short = list(dict.fromkeys(book for book, _ in by_chapter))
    names = {old: new.replace("_", " ") for old, new in zip(short, BOOKS, strict=True)}
    return ["\n".join([f"{names[b]} {c}", *lines]) for (b, c), lines in by_chapter.items()]


def write(path: Path, documents: Sequence[str]) -> None:
    text = SEPARATOR.join(documents) + "\n"
    data = text.encode()
    path.write_bytes(lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))
    print(f"{path}: {len(documents)} documents, {len(data)} bytes, {len(set(text))} different characters")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("poetry", type=Path)
    parser.add_argument("bible", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/lmlab/lab/data"))
    args = parser.parse_args()
    write(args.out / "tang.txt.xz", evenly(common(poems(args.poetry)), SIZE))
    write(args.out / "kjv.txt.xz", chapters(args.bible.read_text(encoding="ascii"))[::CHAPTER_STEP])


if __name__ == "__main__":
    main()
