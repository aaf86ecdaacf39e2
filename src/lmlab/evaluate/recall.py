"""What cannot be done without looking back: copying, finding a passkey, and text made of nothing else.

A model is a callable f(ids [b t]) that returns logits [b t v], or an object with `.logits`.
"""

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmlab.evaluate.length import Model, logits_of

LETTERS = string.ascii_uppercase + string.ascii_lowercase
DIGITS = string.digits
SIGNS = "+-"
ALPHABET = LETTERS + DIGITS + SIGNS


@dataclass(frozen=True)
class Passkey:
    """Share of the trials in which every key token was recalled."""

    length: int
    depth: float
    accuracy: float


def repeated_copy(
    model: Model,
    *,
    length: int,
    period: int,
    vocab: int | Sequence[int],
    n: int = 16,
    seed: int = 0,
    batch: int = 8,
) -> float:
    """Copy accuracy: n sequences of length+1 random ids that repeat every `period`; the share of input
    positions ≥ period at which the argmax is the next id. `vocab`: the number of ids, or the ids."""
    if not 1 <= period < length:
        raise ValueError(f"period must be at least 1 and below length {length}, got {period}")
    if n < 1 or batch < 1:
        raise ValueError(f"n and batch must be >= 1, got n={n}, batch={batch}")
    symbols = _symbols(vocab)
    draw = torch.Generator().manual_seed(seed)
    passage = symbols[torch.randint(len(symbols), (n, period), generator=draw)]
    ids = passage.repeat(1, -(-(length + 1) // period))[:, : length + 1]
    right = 0
    for rows in torch.split(ids, batch):
        guess = logits_of(model, rows[:, :-1])[:, period:].argmax(dim=-1).cpu()
        right += int((guess == rows[:, period + 1 :]).sum())
    return right / (n * (length - period))


def passkey(
    model: Model,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    vocab: int | Sequence[int],
    marker: int,
    key: int = 5,
    trials: int = 8,
    filler: Sequence[int] | None = None,
    seed: int = 0,
    batch: int = 8,
) -> list[Passkey]:
    """Recall of `key` random ids that follow `marker` at a depth (0 … 1) of random filler, asked for by the
    marker at the end (teacher forced). `vocab`: the number of ids, or the ids to draw from; `filler`: other
    ids for the filler. The marker is never drawn."""
    if key < 1 or trials < 1 or batch < 1:
        raise ValueError(f"key, trials and batch must be >= 1, got key={key}, trials={trials}, batch={batch}")
    for length in lengths:
        if length < 2 * key + 2:
            raise ValueError(f"lengths must be at least 2·key + 2 = {2 * key + 2}, got {length}")
    for depth in depths:
        if not 0 <= depth <= 1:
            raise ValueError(f"depths must be between 0 and 1, got {depth}")
    symbols = _symbols(vocab, without=marker)
    padding = symbols if filler is None else _symbols(filler, without=marker)
    cells = []
    for length in lengths:
        for depth in depths:
            draw = torch.Generator().manual_seed(seed)
            ids = padding[torch.randint(len(padding), (trials, length), generator=draw)]
            secret = symbols[torch.randint(len(symbols), (trials, key), generator=draw)]
            for at in (math.floor(depth * (length - 2 * key - 2)), length - key - 1):
                ids[:, at] = marker
                ids[:, at + 1 : at + 1 + key] = secret
            right = 0
            for rows in torch.split(ids, batch):
                guess = logits_of(model, rows[:, :-1])[:, -key:].argmax(dim=-1).cpu()
                right += int((guess == rows[:, -key:]).all(dim=1).sum())
            cells.append(Passkey(length, float(depth), right / trials))
    return cells


def recall_documents(
    count: int,
    *,
    train_length: int,
    length: int | None = None,
    symbols: int = 64,
    seed: int = 0,
    text: str | None = None,
) -> list[str]:
    """The data of the recall model: `count` texts of `length` characters (None: train_length + 1, which makes
    train_length targets). One byte a symbol, and three kinds in turn, none of which can be guessed without
    looking back, by at most train_length however long the text is:

    - a random passage of 8 … 0.8·T₀ symbols, again and again, written in 8 … `symbols` different ones;
    - pairs of a key and a value, each key once, and then asked for again and again in random order;
    - a note of 3 … 8 digits after a sign, again and again between letters (all of it in `ALPHABET`'s order),
      some of them close together, others up to 0.8·T₀ apart;
    - where `text` is given (ASCII, `length` characters or more), a fourth one: that text from a random place
      on, and in it, again and again, such a note or a passage of at most T₀/4 symbols.

    Document n is the same whatever `count` is."""
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    if train_length < 16:
        raise ValueError(f"train_length must be >= 16, got {train_length}")
    if not 4 <= symbols <= len(ALPHABET):
        raise ValueError(f"symbols must be between 4 and {len(ALPHABET)}, got {symbols}")
    size = train_length + 1 if length is None else length
    if size < 1:
        raise ValueError(f"length must be >= 1, got {length}")
    if text is not None and not (text.isascii() and len(text) >= size):
        found = f"{len(text)} characters" if text.isascii() else "characters that aren't"
        raise ValueError(f"text must be ASCII and {size} characters or more, got {found}")
    alphabet = np.frombuffer(ALPHABET.encode(), dtype=np.uint8)
    real = None if text is None else np.frombuffer(text.encode(), dtype=np.uint8)
    documents = []
    for index in range(count):
        draw = np.random.default_rng([seed, index])
        kind = index % (3 if real is None else 4)
        if real is not None and kind == 3:
            written = _within_text(draw, size, train_length, symbols, real, alphabet)
        else:
            written = alphabet[(_passage, _pairs, _notes)[kind](draw, size, train_length, symbols)]
        documents.append(written.tobytes().decode())
    return documents


def passage_documents(
    count: int, *, length: int, periods: tuple[int, int], symbols: int = 64, seed: int = 0
) -> list[str]:
    """`count` texts of `length` characters, each a random passage in `symbols` letters, again and again.

    Its length is drawn from `periods`, both ends included, every factor as likely as any other. What comes
    again is found where the passage's last few letters stood before, so a model that sees fewer than a
    period of characters can't know it. Document n is the same whatever `count` is."""
    least, most = periods
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    if length < 1:
        raise ValueError(f"length must be >= 1, got {length}")
    if not 1 <= least <= most:
        raise ValueError(f"periods must be two lengths, 1 <= least <= most, got {periods}")
    if not 2 <= symbols <= len(ALPHABET):
        raise ValueError(f"symbols must be between 2 and {len(ALPHABET)}, got {symbols}")
    documents = []
    for index in range(count):
        draw = np.random.default_rng([seed, index])
        period = round(least * (most / least) ** draw.random())
        passage = np.resize(draw.integers(symbols, size=period), length)
        documents.append("".join(ALPHABET[x] for x in passage))
    return documents


def _symbols(vocab: int | Sequence[int], without: int | None = None) -> Tensor:
    ids = [x for x in (range(vocab) if isinstance(vocab, int) else vocab) if x != without]
    if not ids:
        raise ValueError(f"vocab must hold at least one id besides the marker, got {vocab!r}")
    return torch.tensor(ids, dtype=torch.int64)


def _passage(draw: np.random.Generator, length: int, trained: int, symbols: int) -> np.ndarray:
    """Few symbols in a passage make runs of several of them the only way to tell places apart."""
    period = int(draw.integers(8, int(0.8 * trained) + 1))
    least = min(8, symbols)
    known = draw.permutation(symbols)[: round(least * (symbols / least) ** draw.random())]
    return np.resize(known[draw.integers(len(known), size=period)], length)


def _pairs(draw: np.random.Generator, length: int, trained: int, symbols: int) -> np.ndarray:
    most = min(symbols, trained // 4)  # at least as many questions as pairs
    keys = draw.permutation(symbols)[: int(draw.integers(2, most + 1))]
    pairs = np.stack([keys, draw.integers(symbols, size=len(keys))], axis=1)
    rounds = -(-length // (2 * len(keys)))
    asked = [pairs[draw.permutation(len(keys))] for _ in range(rounds)]
    return np.concatenate([pairs, *asked]).reshape(-1)[:length]


def _notes(draw: np.random.Generator, length: int, trained: int, symbols: int) -> np.ndarray:
    letters = symbols - sum(_digits_and_signs(symbols))
    text = draw.integers(letters, size=length)
    note = _note(draw, symbols)
    # Where notes are rare, each is found again by one other alone.
    most = round(8 * (0.8 * trained / 8) ** draw.random())
    at = 0
    while at < length:
        at += int(draw.integers(0, most))
        end = min(at + len(note), length)
        text[at:end] = note[: max(0, end - at)]
        at = end
    return text


def _note(draw: np.random.Generator, symbols: int) -> np.ndarray:
    digits, signs = _digits_and_signs(symbols)
    letters = symbols - digits - signs
    sign = letters + digits + draw.integers(signs)
    return np.append(sign, letters + draw.integers(digits, size=draw.integers(3, 9)))


def _digits_and_signs(symbols: int) -> tuple[int, int]:
    return max(1, symbols * 10 // 64), max(1, symbols * 2 // 64)


def _within_text(
    draw: np.random.Generator,
    length: int,
    trained: int,
    symbols: int,
    text: np.ndarray,
    alphabet: np.ndarray,
) -> np.ndarray:
    """Bytes of real text, in which a note or a passage comes again and again."""
    passage = draw.integers(symbols, size=draw.integers(4, trained // 4 + 1))
    again = alphabet[passage if draw.random() < 0.5 else _note(draw, symbols)]
    start = int(draw.integers(len(text) - length + 1))
    parts: list[np.ndarray] = []
    done = 0
    while done < length:
        size = int(draw.integers(1, trained // 3))
        parts += [text[start : start + size], again]
        start, done = start + size, done + size + len(again)
    return np.concatenate(parts)[:length]
