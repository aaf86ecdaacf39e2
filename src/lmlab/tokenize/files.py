"""The tokenizer's own file: one JSON object, one piece a line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from lmlab.retry import atomic_write

FORMAT = "lmlab.tokenize"
VERSION = 1


class Contents(NamedTuple):
    """What defines a tokenizer, by id; the score of a special token is -inf."""

    pieces: list[bytes]
    scores: list[float]
    special_tokens: dict[str, int]
    normalize: str | None
    training: dict[str, Any]


def save(path: str | os.PathLike[str], contents: Contents) -> None:
    """Writes the file whole or not at all."""

    def line(piece: bytes, score: float) -> str:
        try:
            text: Any = piece.decode()
        except UnicodeDecodeError:
            text = {"hex": piece.hex()}
        return json.dumps([text, score if math.isfinite(score) else None], ensure_ascii=False)

    head = {
        "format": FORMAT,
        "version": VERSION,
        "normalize": contents.normalize,
        "special_tokens": contents.special_tokens,
        "training": contents.training,
    }
    lines = ",\n".join(map(line, contents.pieces, contents.scores))
    text = json.dumps(head, ensure_ascii=False)[:-1] + ', "pieces": [\n' + lines + "\n]}\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def load(path: str | os.PathLike[str]) -> Contents:
    """Reads and checks what `save` wrote; ValueError says what is wrong with any other file."""
    try:
        data = json.loads(Path(path).read_bytes().decode())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} is not a {FORMAT} file: not JSON in UTF-8 ({error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{os.fspath(path)} is not a {FORMAT} file: its format is {found!r}")
    if data.get("version") != VERSION:
        raise ValueError(
            f"{os.fspath(path)} has version {data.get('version')!r} of {FORMAT}, this program reads version "
            f"{VERSION}: update lmlab"
        )
    try:
        special: dict[str, int] = {str(k): int(v) for k, v in data["special_tokens"].items()}
        pieces, scores = [], []
        for entry in data["pieces"]:
            piece, score = entry
            pieces.append(piece.encode() if isinstance(piece, str) else bytes.fromhex(piece["hex"]))
            scores.append(-math.inf if score is None else float(score))
        return Contents(pieces, scores, special, data["normalize"], dict(data["training"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)} is a damaged {FORMAT} file: {error!r}") from None
