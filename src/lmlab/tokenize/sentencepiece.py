"""Models of sentencepiece, read and written without it: the few protobuf fields that matter, by hand."""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lmlab.retry import atomic_write
from lmlab.tokenize.files import Contents

SPACE = "▁"  # U+2581 stands for a space in pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
UNKNOWN_PENALTY = 10.0  # below the lowest score: what sentencepiece charges for a character without a piece


class _Model(NamedTuple):
    pieces: list[tuple[str, float, int]]  # text, score, type
    model_type: int
    in_the_way: list[str]  # what the model does to a text beyond segmenting it


def read(path: str | os.PathLike[str], normalizer: str) -> Contents:
    """The vocabulary of a unigram model, ids kept; pieces that never match become special tokens."""
    if normalizer not in ("strict", "drop"):
        raise ValueError(f"normalizer must be 'strict' or 'drop', not {normalizer!r}")
    try:
        model = _parse(Path(path).read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise ValueError(f"{os.fspath(path)} is no sentencepiece model: {error}") from None
    if model.model_type == BPE:
        raise ValueError(
            f"{os.fspath(path)} holds a BPE model, and BPE has no unigram law: train with unigram"
        )
    if model.model_type != UNIGRAM:
        raise ValueError(f"{os.fspath(path)} holds a model of type {model.model_type}, not a unigram model")
    if model.in_the_way:
        found = ", ".join(model.in_the_way)
        if normalizer == "strict":
            raise ValueError(
                f"{os.fspath(path)} changes texts before it segments them: {found}. Train it with the "
                "identity normaliser and without them, or pass normalizer='drop' to take pieces and scores alone"
            )
        warnings.warn(f"left out, so ids may differ from sentencepiece: {found}", UserWarning, stacklevel=3)
    return _contents(model)


def _contents(model: _Model) -> Contents:
    lowest = min((score for _, score, kind in model.pieces if kind == NORMAL), default=0.0)

    def byte_score(byte: int) -> float:
        """Summed over the bytes of a character, what sentencepiece charges for an unknown one."""
        return 0.0 if 0x80 <= byte <= 0xBF else lowest - UNKNOWN_PENALTY

    matching = {
        text.replace(SPACE, " ").encode() for text, _, kind in model.pieces if kind in (NORMAL, USER_DEFINED)
    }
    pieces: list[bytes] = []
    scores: list[float] = []
    special: dict[str, int] = {}
    for i, (text, score, kind) in enumerate(model.pieces):
        piece = text.replace(SPACE, " ").encode()
        if kind == BYTE:
            byte = bytes([int(text[3:5], 16)])
            if byte not in matching:
                pieces.append(byte)
                scores.append(byte_score(byte[0]))
                matching.add(byte)
                continue
        elif kind in (NORMAL, USER_DEFINED):
            pieces.append(piece)
            scores.append(score)
            continue
        special[text] = i
        pieces.append(text.encode())
        scores.append(-math.inf)
    for value in range(256):
        if bytes([value]) not in matching:
            pieces.append(bytes([value]))
            scores.append(byte_score(value))
    return Contents(pieces, scores, special, None, {})


def write(path: str | os.PathLike[str], contents: Contents) -> None:
    """Writes a `.model`; ValueError for a vocabulary that the format can't hold. Pieces with U+2581 go unused."""
    if contents.normalize is not None:
        raise ValueError("sentencepiece has no NFC normaliser: make a Tokenizer with normalize=None")
    special = set(contents.special_tokens.values())
    entries: list[tuple[str, float, int]] = []
    for i, (piece, score) in enumerate(zip(contents.pieces, contents.scores, strict=True)):
        if i in special:
            entries.append((piece.decode(), 0.0, CONTROL))
        elif len(piece) == 1 and piece[0] >= 0x80:
            entries.append((f"<0x{piece[0]:02X}>", score, BYTE))
        elif SPACE.encode() in piece:  # the format can't tell it from a space
            entries.append((f"<piece {i}>", score, UNUSED))
        else:
            entries.append((_text(piece), score, NORMAL))
    unused = sum(kind == UNUSED for _, _, kind in entries)
    if unused:
        warnings.warn(
            f"{unused} pieces hold U+2581, which stands for a space in sentencepiece: they never match there",
            UserWarning,
            stacklevel=3,
        )
    unknown = len(entries)
    if "<unk>" in contents.special_tokens:
        unknown = contents.special_tokens["<unk>"]
        entries[unknown] = ("<unk>", 0.0, UNKNOWN)
    else:
        entries.append(("<unk>", 0.0, UNKNOWN))
    named = {text for text, _, _ in entries}
    lowest = min(score for _, score, kind in entries if kind in (NORMAL, BYTE))
    entries += [(name, lowest, BYTE) for name in (f"<0x{b:02X}>" for b in range(128)) if name not in named]

    message = bytearray()
    for text, score, kind in entries:
        encoded = text.encode()
        body = _field(1, encoded) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        message += _field(1, bytes(body))
    trainer = _number(3, UNIGRAM) + _number(4, len(entries)) + _number(35, 1) + _number(40, unknown)
    trainer += b"".join(_number(field, -1) for field in (41, 42, 43))  # no begin, end or padding
    message += _field(2, trainer)
    message += _field(3, _field(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1))
    with atomic_write(path) as file:
        file.write(bytes(message))


def _text(piece: bytes) -> str:
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        raise ValueError(
            f"the piece {piece!r} cuts a character, and pieces of sentencepiece are text: train with "
            "characters_whole=True"
        ) from None
    return text.replace(" ", SPACE)


def _parse(data: bytes) -> _Model:
    pieces: list[tuple[str, float, int]] = []
    model_type, in_the_way = UNIGRAM, []
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text, score, kind = "", 0.0, NORMAL
            for inner, part in _fields(value):
                if inner == 1 and isinstance(part, bytes):
                    text = part.decode()
                elif inner == 2 and isinstance(part, bytes):
                    score = struct.unpack("<f", part)[0]
                elif inner == 3 and isinstance(part, int):
                    kind = part
            pieces.append((text, score, kind))
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
            kind_found = trainer.get(3, UNIGRAM)
            model_type = kind_found if isinstance(kind_found, int) else 0
            if trainer.get(24):
                in_the_way.append("treat_whitespace_as_suffix")
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("it holds no pieces")
    if normalizer.get(2):
        name = normalizer.get(1, b"")
        in_the_way.append(f"the normaliser {name.decode() if isinstance(name, bytes) else name!r}")
    if normalizer.get(3, 1):
        in_the_way.append("add_dummy_prefix")
    if normalizer.get(4, 1):
        in_the_way.append("remove_extra_whitespaces")
    if not normalizer.get(5, 1):
        in_the_way.append("escape_whitespaces off")
    forced = [text for text, _, kind in pieces if kind == USER_DEFINED]
    if forced:
        in_the_way.append(f"{len(forced)} user-defined symbols that always match, such as {forced[0]!r}")
    return _Model(pieces, model_type, in_the_way)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field: an int for a varint, bytes for everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if number == 0 or at + size > len(data):
            raise ValueError(f"a field that goes beyond the end, at byte {at}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _encode(value: int) -> bytes:
    value &= (1 << 64) - 1
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _number(field: int, value: int) -> bytes:
    return _encode(field << 3) + _encode(value)


def _field(field: int, value: bytes) -> bytes:
    return _encode(field << 3 | 2) + _encode(len(value)) + value
