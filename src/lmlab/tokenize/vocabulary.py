"""What a vocabulary must be, and how it is completed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lmlab.tokenize.files import Contents

LONGEST_PIECE = 255
UNLISTED_BYTE = 10.0  # a byte that was not given costs this much more than the worst piece


def check_special(names: Sequence[str]) -> tuple[str, ...]:
    """Names of special tokens: distinct, not empty."""
    if isinstance(names, str | bytes):
        raise TypeError(f"special_tokens must be a sequence of str, not one text: write [{names!r}]")
    found = tuple(names)
    for i, name in enumerate(found):
        if not isinstance(name, str) or not name:
            raise TypeError(f"special_tokens[{i}] must be a non-empty str, not {name!r:.60}")
        if name in found[:i]:
            raise ValueError(f"special_tokens[{i}] = {name!r} occurs twice: special tokens must be distinct")
    return found


def check_normalize(normalize: str | None) -> None:
    if normalize not in (None, "nfc"):
        raise ValueError(f"normalize must be 'nfc' or None, not {normalize!r}")


def complete(contents: Contents, special_tokens: Sequence[str]) -> Contents:
    """`contents` checked, with the single bytes that it lacks and then `special_tokens` appended."""
    last = check_special(special_tokens)
    check_normalize(contents.normalize)
    pieces, scores = list(contents.pieces), list(contents.scores)
    if len(pieces) != len(scores):
        raise ValueError(f"pieces and scores must be of one length, not {len(pieces)} and {len(scores)}")
    special = dict(contents.special_tokens)
    for name, i in special.items():
        if not 0 <= i < len(pieces) or pieces[i] != name.encode():
            raise ValueError(f"the special token {name!r} has the id {i}, which is not its entry")
        if name in last:
            raise ValueError(f"the special token {name!r} occurs twice: special tokens must be distinct")
        scores[i] = -math.inf
    taken = set(special.values())
    normal = [i for i in range(len(pieces)) if i not in taken]
    seen = _check_pieces(pieces, scores, normal)
    least = min((scores[i] for i in normal), default=0.0) - UNLISTED_BYTE
    missing = [byte for byte in (bytes([value]) for value in range(256)) if byte not in seen]
    first = len(pieces) + len(missing)
    return Contents(
        [*pieces, *missing, *(name.encode() for name in last)],
        [*scores, *[least] * len(missing), *[-math.inf] * len(last)],
        special | {name: first + k for k, name in enumerate(last)},
        contents.normalize,
        dict(contents.training),
    )


def _check_pieces(pieces: Sequence[bytes], scores: Sequence[float], normal: Sequence[int]) -> set[bytes]:
    seen: set[bytes] = set()
    for i in normal:
        piece, score = pieces[i], scores[i]
        if not isinstance(piece, bytes):
            raise TypeError(f"pieces[{i}] must be bytes, not {type(piece).__name__} ({piece!r:.60})")
        if not 1 <= len(piece) <= LONGEST_PIECE:
            raise ValueError(
                f"pieces[{i}] must have 1 to {LONGEST_PIECE} bytes, not {len(piece)} ({piece!r:.60})"
            )
        if piece in seen:
            raise ValueError(f"pieces[{i}] = {piece!r:.60} occurs twice: pieces must be distinct")
        if not math.isfinite(score):
            raise ValueError(f"scores[{i}] = {score} of the piece {piece!r:.60}: scores must be finite")
        seen.add(piece)
    return seen
