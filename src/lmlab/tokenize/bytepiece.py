"""Models of bytepiece: JSON of base64(piece) -> [id, text, count]."""

from __future__ import annotations

import base64
import json
import math
import os
from pathlib import Path

from lmlab.tokenize.files import Contents

RESERVED = ("<pad>", "<bos>", "<eos>")  # ids 0, 1, 2


def read(path: str | os.PathLike[str]) -> Contents:
    """The vocabulary, ids kept; ValueError if the file is no such model."""
    try:
        table = json.loads(Path(path).read_bytes().decode())
        rows = {
            int(row[0]): (base64.b64decode(key, validate=True), float(row[2])) for key, row in table.items()
        }
        if sorted(rows) != list(range(3, 3 + len(table))):
            raise ValueError("ids must run from 3 without a gap")
        if any(not (math.isfinite(count) and count > 0) for _, count in rows.values()):
            raise ValueError("counts must be positive")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)} is no bytepiece model: {error}") from None
    total = sum(count for _, count in rows.values())
    entries = [rows[i] for i in sorted(rows)]
    return Contents(
        [name.encode() for name in RESERVED] + [piece for piece, _ in entries],
        [-math.inf] * 3 + [math.log(count / total) for _, count in entries],
        {name: i for i, name in enumerate(RESERVED)},
        "nfc",
        {},
    )
