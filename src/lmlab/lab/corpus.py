"""Raw text in, two files of documents out: `train.jsonl` and `held_out.jsonl`, one `{"text": …}` a line.

Everything that is left out is counted by its reason. Memory stays bounded: documents are streamed to disk and
only their hashes are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lmlab.lab.options import CorpusOptions
from lmlab.lab.sources import CorpusError, Skipped, Source

VERSION = 1
_BLOCK = 1 << 20


# --- which documents ---------------------------------------------------------------------------------------


def documents(source: Source, options: CorpusOptions, skipped: Skipped) -> Iterator[str]:
    """The good documents of one source, in order; the rest is counted in `skipped`."""
    for place, raw in _raw_documents(source, options, skipped):
        text = _clean(raw, options, skipped, f"{source.name}, {place}")
        if text is not None:
            yield text


def _clean(raw: bytes | str, options: CorpusOptions, skipped: Skipped, place: str) -> str | None:
    replace = options.errors == "replace"
    if isinstance(raw, bytes):
        try:
            raw = raw.decode("utf-8", "replace" if replace else "strict")
        except UnicodeDecodeError:
            skipped.add("invalid UTF-8", place)
            return None
    text = raw.strip("\r\n")
    if not text.strip():
        skipped.add("empty", place)
        return None
    if any("\ud800" <= c <= "\udfff" for c in text):  # "\ud800" in JSON is no character
        if not replace:
            skipped.add("invalid UTF-8", place)
            return None
        text = text.encode("utf-8", "replace").decode()
    if "\0" in text:
        if not replace:
            skipped.add("NUL", place)
            return None
        text = text.replace("\0", "\ufffd")
    if len(text.encode()) > options.max_document_bytes:
        skipped.add("too long", place)
        return None
    return text


def _raw_documents(
    source: Source, options: CorpusOptions, skipped: Skipped
) -> Iterator[tuple[str, bytes | str]]:
    if source.format == "parquet":
        yield from _parquet(source, options, skipped)
        return
    with source.open() as file:
        if source.format == "text":
            separator = options.document_separator.encode()
            for n, piece in enumerate(_split(file, separator, options.max_document_bytes), 1):
                yield from _whole(piece, f"document {n}", source, skipped)
            return
        for n, piece in enumerate(_split(file, b"\n", _line_limit(source, options)), 1):
            for place, line in _whole(piece, f"line {n}", source, skipped):
                if source.format == "lines":
                    yield place, line
                elif line.strip():
                    yield from _json_line(line, place, source, options, skipped)


def _line_limit(source: Source, options: CorpusOptions) -> int:
    """A JSON line may be longer than its document: escapes, other fields."""
    return options.max_document_bytes if source.format == "lines" else 8 * options.max_document_bytes + _BLOCK


def _whole(piece: bytes | None, place: str, source: Source, skipped: Skipped) -> Iterator[tuple[str, bytes]]:
    if piece is None:
        skipped.add("too long", f"{source.name}, {place}")
    else:
        yield place, piece


def _json_line(
    line: bytes, place: str, source: Source, options: CorpusOptions, skipped: Skipped
) -> Iterator[tuple[str, str]]:
    where = f"{source.name}, {place}"
    try:
        row = json.loads(line.decode("utf-8", "replace" if options.errors == "replace" else "strict"))
    except UnicodeDecodeError:
        skipped.add("invalid UTF-8", where)
        return
    except (ValueError, RecursionError):
        skipped.add("broken JSON", where)
        return
    text = row.get(options.field) if isinstance(row, dict) else None
    if isinstance(text, str):
        yield place, text
    else:
        skipped.add(f"no text under {options.field!r}", where)


def _split(file: BinaryIO, separator: bytes, limit: int) -> Iterator[bytes | None]:
    """The pieces of `file` between separators; None stands for one of more than `limit` bytes, which is
    passed over without being held. An empty separator gives the whole file. A last empty piece is none."""
    buffer = bytearray()
    too_long = False
    while block := file.read(_BLOCK):
        start = max(0, len(buffer) - len(separator) + 1)
        buffer += block
        while separator and (at := buffer.find(separator, start)) >= 0:
            yield None if too_long or at > limit else bytes(buffer[:at])
            del buffer[: at + len(separator)]
            too_long, start = False, 0
        if len(buffer) > limit + len(separator):
            too_long = True
            del buffer[: len(buffer) - len(separator)]
    if too_long or len(buffer) > limit:
        yield None
    elif buffer:
        yield bytes(buffer)


def _parquet(source: Source, options: CorpusOptions, skipped: Skipped) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise CorpusError("parquet needs pyarrow: pip install 'lmlab[parquet]'") from error
    try:
        with source.open() as raw:
            file = parquet.ParquetFile(raw)
            if options.field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names[:20])
                skipped.add(f"no column {options.field!r}", f"{source.name} (columns: {names})")
                return
            n = 0
            for batch in file.iter_batches(batch_size=256, columns=[options.field]):
                for value in batch.column(0):
                    n += 1
                    text = value.as_py()
                    if isinstance(text, str):
                        yield f"row {n}", text
                    else:
                        skipped.add(f"no text under {options.field!r}", f"{source.name}, row {n}")
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        skipped.add("broken parquet", f"{source.name}: {' '.join(str(error).split())[:120]}")


# --- the split ---------------------------------------------------------------------------------------------


def make_corpus(
    sources: list[Source], skipped: Skipped, options: CorpusOptions, seed: int, out: Path
) -> dict[str, Any]:
    """Write `train.jsonl`, `held_out.jsonl` and `corpus.json` into `out`; return what corpus.json says.

    Held out are the documents whose hash under the seed is smallest, until they make up `held_out` of all
    bytes: the choice depends on a document's text alone, so equal documents are on one side, and a document
    that is added later moves few others. One document alone is held out by its tail.
    """
    every = out / "documents.jsonl"
    hashes, sizes = _write_all(every, sources, skipped, options, seed)
    if not hashes:
        raise CorpusError(f"no document can be used. Left out: {skipped or 'none, there was none'}")
    if len(set(hashes)) == 1:
        train, held = _cut_tail(every, options.held_out, out)
    else:
        chosen = _choose(hashes, sizes, options.held_out)
        train, held = _copy_sides(every, hashes, chosen, out)
    every.unlink()
    result = {
        "documents": {"train": train[0], "held_out": held[0]},
        "train_bytes": train[1],
        "held_out_bytes": held[1],
        "skipped": dict(sorted(skipped.counts.items())),
        "skipped_first": dict(sorted(skipped.first.items())),
        "sources": [Path(s.name).name for s in sources],
    }
    (out / "corpus.json").write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
    return result


def _write_all(
    path: Path, sources: list[Source], skipped: Skipped, options: CorpusOptions, seed: int
) -> tuple[list[bytes], list[int]]:
    hashes: list[bytes] = []
    sizes: list[int] = []
    total = 0
    salt = f"{seed}\0".encode()
    with path.open("w", encoding="utf-8") as file:
        for source in sources:
            for text in documents(source, options, skipped):
                size = len(text.encode())
                if options.max_bytes is not None and total + size > options.max_bytes:
                    if not hashes:
                        raise CorpusError(
                            f"corpus.max_bytes = {options.max_bytes} is less than the first document "
                            f"({size} bytes)"
                        )
                    skipped.add("over max_bytes", source.name)
                    return hashes, sizes
                total += size
                hashes.append(hashlib.sha256(salt + text.encode()).digest()[:16])
                sizes.append(size)
                file.write(_line(text))
    return hashes, sizes


def _choose(hashes: list[bytes], sizes: list[int], share: float) -> set[bytes]:
    """The smallest hashes whose documents first reach `share` of all bytes; at least one, never all."""
    weight: Counter[bytes] = Counter()
    for h, size in zip(hashes, sizes, strict=True):
        weight[h] += size
    wanted, taken = share * sum(sizes), 0
    chosen: set[bytes] = set()
    for h in sorted(weight)[:-1]:
        if taken >= wanted and chosen:
            break
        chosen.add(h)
        taken += weight[h]
    return chosen


def _copy_sides(
    every: Path, hashes: list[bytes], chosen: set[bytes], out: Path
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both splits as (documents, bytes). Held-out documents stand in the order of their hashes, so that the
    first of them are a fair sample of all sources."""
    held: list[tuple[bytes, int]] = []  # hash, place in the file
    size, place = [0, 0], 0
    with every.open("rb") as lines, (out / "train.jsonl").open("wb") as train:
        for line, h in zip(lines, hashes, strict=True):
            if h in chosen:
                held.append((h, place))
            else:
                train.write(line)
            size[h in chosen] += len(json.loads(line)["text"].encode())
            place += len(line)
    with every.open("rb") as lines, (out / "held_out.jsonl").open("wb") as held_out:
        for _, place in sorted(held):
            lines.seek(place)
            held_out.write(lines.readline())
    return (len(hashes) - len(held), size[0]), (len(held), size[1])


def _cut_tail(every: Path, share: float, out: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """One document: its last `share` of bytes is held out, from the next line's start on if one is near."""
    with every.open(encoding="utf-8") as lines:
        text = json.loads(next(lines))["text"]
    data = text.encode()
    at = min(max(int(len(data) * (1 - share)), 1), len(data) - 1)
    newline = data.find(b"\n", at, at + max(200, len(data) // 100))
    at = newline + 1 if 0 < newline < len(data) - 1 else at
    while at < len(data) and data[at] & 0xC0 == 0x80:  # never inside a character
        at += 1
    head, tail = data[:at].decode(), data[at:].decode()
    if not tail.strip() or not head.strip():
        raise CorpusError(
            f"one document of {len(data)} bytes can't be divided into a train and a held-out part"
        )
    (out / "train.jsonl").write_text(_line(head), encoding="utf-8")
    (out / "held_out.jsonl").write_text(_line(tail), encoding="utf-8")
    return (1, len(head.encode())), (1, len(tail.encode()))


def _line(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False) + "\n"


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a `train.jsonl` or `held_out.jsonl`."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]
