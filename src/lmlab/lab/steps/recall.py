"""The corpora that are made on the spot. `recall`: passages that come again, pairs that are asked for, notes that
are read again, and real text with such passages and notes in it. `passages`: the first of these alone, near and
far."""

from __future__ import annotations

import hashlib
import io
from functools import partial

from lmlab.lab.sources import Source, embedded_sources

BYTES = 2_000_000  # of text where the recipe names no max_bytes
NEAREST = 16  # symbols of the shortest passage of `passages`
LENGTHS = 3  # trained lengths in a document: most rows, cut anywhere, hold one; longer ones would be learned by heart


def recall_source(length: int, seed: int, max_bytes: int | None) -> Source:
    """Documents of LENGTHS · `length` symbols, one a line, as many as `max_bytes` holds (three at least).

    What comes again does so within `length` symbols."""
    from lmlab.evaluate import recall_documents

    size = LENGTHS * length
    documents = recall_documents(
        _count(size, max_bytes), train_length=length, length=size, seed=seed, text=english(at_least=size)
    )
    return _source("recall", documents)


def english(at_least: int = 0) -> str:
    """The English sample of the package on one line, again from its start where it is too short."""
    (source,) = embedded_sources("sample-kjv")
    with source.open() as file:
        text = " ".join(file.read().decode().split("\n"))
    return text * max(1, -(-at_least // len(text)))


def passages_source(length: int, seed: int, max_bytes: int | None) -> Source:
    """As `recall_source`, of passages of NEAREST … `length` / 2 symbols, so that each can come again."""
    from lmlab.evaluate import passage_documents

    size = LENGTHS * length
    periods = (min(NEAREST, length // 2), length // 2)
    return _source(
        "passages", passage_documents(_count(size, max_bytes), length=size, periods=periods, seed=seed)
    )


def _count(size: int, max_bytes: int | None) -> int:
    return max(3, (BYTES if max_bytes is None else max_bytes) // (size + 1))


def _source(name: str, documents: list[str]) -> Source:
    text = "\n".join(documents).encode()
    return Source(name, "lines", partial(io.BytesIO, text), hashlib.sha256(text).hexdigest())
