"""The corpus `recall`: passages that come again, pairs that are asked for, notes that are read again; nothing
else can be learned."""

from __future__ import annotations

import hashlib
import io
from functools import partial

from lmlab.lab.sources import Source

BYTES = 2_000_000  # of text where the recipe names no max_bytes
LENGTHS = 3  # trained lengths in a document: most rows, cut anywhere, hold one; longer ones would be learned by heart


def recall_source(length: int, seed: int, max_bytes: int | None) -> Source:
    """Documents of LENGTHS · `length` symbols, one a line, as many as `max_bytes` holds (three at least).

    What comes again does so within `length` symbols."""
    from lmlab.evaluate import recall_documents

    size = LENGTHS * length
    count = max(3, (BYTES if max_bytes is None else max_bytes) // (size + 1))
    text = "\n".join(recall_documents(count, train_length=length, length=size, seed=seed)).encode()
    return Source("recall", "lines", partial(io.BytesIO, text), hashlib.sha256(text).hexdigest())
