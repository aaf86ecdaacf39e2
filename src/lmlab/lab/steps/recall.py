"""The corpus `recall`: passages that come again, and pairs that are asked for; nothing else can be learned."""

from __future__ import annotations

import hashlib
import io
from functools import partial

from lmlab.lab.sources import Source

BYTES = 2_000_000  # of text where the recipe names no max_bytes


def recall_source(length: int, seed: int, max_bytes: int | None) -> Source:
    """Documents of `length` + 1 symbols, one a line, as many as `max_bytes` holds (two at least)."""
    from lmlab.evaluate import recall_documents

    count = max(2, (BYTES if max_bytes is None else max_bytes) // (length + 1))
    text = "\n".join(recall_documents(count, train_length=length, seed=seed)).encode()
    return Source("recall", "lines", partial(io.BytesIO, text), hashlib.sha256(text).hexdigest())
