"""Where tokens lie in their text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lmlab.tokenize.tokenizer import Tokenizer


def spans(tokenizer: Tokenizer, text: bytes, ids: npt.NDArray[np.uint32], unit: str) -> npt.NDArray[np.int64]:
    """int64 [t 2]; ValueError if the ids don't spell the text, or characters are asked of what has none."""
    special = set(tokenizer.special_tokens.values())
    pieces = [b"" if i in special else tokenizer.pieces[i] for i in ids.tolist()]
    _check_spelling(b"".join(pieces), text)
    ends = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    result = np.stack([ends[:-1], ends[1:]], axis=1)
    if unit == "byte":
        return result
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text is not UTF-8 at byte {error.start}, so characters can't be counted: use unit='byte'"
        ) from None
    begins = (np.frombuffer(text, dtype=np.uint8) & 0xC0) != 0x80
    begun = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(begins)])  # characters begun before a byte
    inside = np.append(~begins, False)  # byte a lies within a character, which was counted before it
    start, end = result[:, 0], result[:, 1]
    empty = start == end
    first = begun[start] - (inside[start] & ~empty)
    return np.stack([first, begun[end]], axis=1)


def _check_spelling(spelled: bytes, text: bytes) -> None:
    if spelled == text:
        return
    size = min(len(spelled), len(text))
    differ = np.frombuffer(spelled, np.uint8, size) != np.frombuffer(text, np.uint8, size)
    at = int(differ.argmax()) if differ.any() else size
    raise ValueError(
        f"ids don't spell text: they differ from byte {at}, where ids have {spelled[at : at + 12]!r} and text "
        f"has {text[at : at + 12]!r}"
    )
