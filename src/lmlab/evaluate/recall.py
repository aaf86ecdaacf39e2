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

ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+-"


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


def recall_documents(count: int, *, train_length: int, symbols: int = 64, seed: int = 0) -> list[str]:
    """The data of the recall model: `count` texts of train_length + 1 characters (train_length targets).

    One byte a symbol. Even ones repeat a random passage of 8 … 0.8·T₀ symbols. Odd ones list pairs of a key
    and a value, each key once, and then ask for them again and again in random order. Document n is the same
    whatever `count` is."""
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    if train_length < 16:
        raise ValueError(f"train_length must be >= 16, got {train_length}")
    if not 2 <= symbols <= len(ALPHABET):
        raise ValueError(f"symbols must be between 2 and {len(ALPHABET)}, got {symbols}")
    length = train_length + 1
    documents = []
    for index in range(count):
        draw = np.random.default_rng([seed, index])
        ids = _pairs(draw, length, symbols) if index % 2 else _passage(draw, length, symbols)
        documents.append("".join(ALPHABET[x] for x in ids))
    return documents


def _symbols(vocab: int | Sequence[int], without: int | None = None) -> Tensor:
    ids = [x for x in (range(vocab) if isinstance(vocab, int) else vocab) if x != without]
    if not ids:
        raise ValueError(f"vocab must hold at least one id besides the marker, got {vocab!r}")
    return torch.tensor(ids, dtype=torch.int64)


def _passage(draw: np.random.Generator, length: int, symbols: int) -> np.ndarray:
    period = int(draw.integers(8, int(0.8 * (length - 1)) + 1))
    return np.resize(draw.integers(symbols, size=period), length)


def _pairs(draw: np.random.Generator, length: int, symbols: int) -> np.ndarray:
    most = min(symbols, length // 4)  # at least as many questions as pairs
    keys = draw.permutation(symbols)[: int(draw.integers(2, most + 1))]
    pairs = np.stack([keys, draw.integers(symbols, size=len(keys))], axis=1)
    rounds = -(-length // (2 * len(keys)))
    asked = [pairs[draw.permutation(len(keys))] for _ in range(rounds)]
    return np.concatenate([pairs, *asked]).reshape(-1)[:length]
