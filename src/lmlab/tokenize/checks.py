"""The checks of arguments that several methods share; each says what was given and what is accepted."""

from __future__ import annotations

import math
import operator
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

LARGEST_SEED = 2**64 - 1


def check_text(text: object, name: str = "text") -> None:
    if not isinstance(text, str | bytes):
        raise TypeError(f"{name} must be str or bytes, not {type(text).__name__} ({text!r:.60})")


def check_texts(texts: object) -> tuple[Any, ...]:
    """`texts` as a tuple, which nobody else can change while threads read it."""
    if isinstance(texts, str | bytes):
        kind = type(texts).__name__
        raise TypeError(f"texts must be a sequence of texts, not one {kind}: write encode_batch([text])")
    if not isinstance(texts, Iterable):
        raise TypeError(
            f"texts must be a sequence of str or bytes, not {type(texts).__name__} ({texts!r:.60})"
        )
    found = tuple(texts)
    if not {str, bytes}.issuperset(map(type, found)):  # a look at each costs as much as encoding a short line
        for i, text in enumerate(found):
            check_text(text, f"texts[{i}]")
    return found


def refuse_surrogate(texts: Sequence[str | bytes], name: str, first: int = 0) -> NoReturn:
    """Raises for the first str that has no UTF-8 form; `first`: the number of texts[0]."""
    for i, text in enumerate(texts, first):
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                where = name if name == "text" else f"{name}[{i}]"
                raise ValueError(
                    f"{where} has a lone surrogate, {text[error.start]!r}, at character {error.start}: it "
                    "has no UTF-8 form; pass bytes, for example text.encode('utf-8', 'surrogatepass')"
                ) from None
    raise AssertionError("every text has a UTF-8 form")


def check_integer(value: object, name: str, least: int, greatest: int | None = None) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__} ({value!r:.60})") from None
    if number < least or (greatest is not None and number > greatest):
        limits = f"at least {least}" if greatest is None else f"in [{least}, {greatest}]"
        raise ValueError(f"{name} must be {limits}, not {number}")
    return number


def check_alpha(alpha: object) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.integer | np.floating):
        raise TypeError(f"alpha must be a number, not {type(alpha).__name__} ({alpha!r:.60})")
    value = float(alpha)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"alpha must be finite and >= 0, not {alpha} (for the best segmentation leave it out)"
        )
    return value


def check_draw(alpha: object, seed: object, stream: object, method: str) -> tuple[float, int, int, bool]:
    """(alpha, seed, stream, biased) of a call that samples."""
    if method not in ("exact", "viterbi-sampling"):
        raise ValueError(f"method must be 'exact' or 'viterbi-sampling', not {method!r}")
    if alpha is None:
        given = f"method={method!r}" if seed is None else f"seed={seed!r}"
        raise ValueError(
            f"{given} without alpha would be ignored, because the best segmentation is not random: "
            "give alpha too, for example alpha=1.0, or leave both out"
        )
    return (
        check_alpha(alpha),
        check_seed(seed),
        check_integer(stream, "stream", 0, LARGEST_SEED),
        method != "exact",
    )


def check_seed(seed: object) -> int:
    if seed is None:
        return int.from_bytes(os.urandom(8), "little")
    return check_integer(seed, "seed", 0, LARGEST_SEED)


def check_threads(threads: object, name: str = "threads") -> int:
    """None: the CPUs that this process may use."""
    if threads is not None:
        return check_integer(threads, name, 1, 4096)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_ids(ids: object, vocab_size: int, name: str = "ids") -> npt.NDArray[np.uint32]:
    """`ids` as a uint32 vector whose members are all below `vocab_size`."""
    if isinstance(ids, np.ndarray) and ids.dtype == np.uint32 and ids.ndim == 1:
        if ids.size == 0 or ids.max() < vocab_size:
            return np.ascontiguousarray(ids)
        array = ids
    else:
        try:
            array = np.asarray(ids)
        except (ValueError, OverflowError):
            array = np.empty(0, dtype=object)
        if array.size == 0 and array.ndim == 1 and isinstance(ids, list | tuple | np.ndarray):
            return np.empty(0, dtype=np.uint32)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(f"{name} must be a sequence of ints, not {type(ids).__name__} ({ids!r:.60})")
    bad = (array < 0) | (array >= vocab_size)
    if bad.any():
        raise ValueError(f"{name} holds {array[bad.argmax()]}, but ids run from 0 to {vocab_size - 1}")
    return np.ascontiguousarray(array, dtype=np.uint32)


def normalized(text: Any, form: str | None) -> Any:
    """str in NFC where the tokenizer asks for it; bytes as they are."""
    return unicodedata.normalize("NFC", text) if form == "nfc" and isinstance(text, str) else text
