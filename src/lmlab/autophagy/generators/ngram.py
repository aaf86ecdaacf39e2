"""An n-gram model with interpolated back-off: a text model that is fitted by counting, in milliseconds.

p_k(x|c) = (count(c x) + a·p_{k−1}(x|shorter c)) / (count(c) + a), p_0 = 1/v, k the order, a the smoothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lmlab.autophagy.generators.template import TemplateLaw

# A dense table of conditionals holds at most so many numbers at a time (32 MiB).
_TABLE = 1 << 22


class _Level(NamedTuple):
    """Counts behind contexts of one length. A context's id is its place among the sorted `contexts`.

    A context is coded as (id of the context without its oldest token)·(v + 1) + that token, a pair as
    (id of the context)·v + next token: so codes fit into 64 bits at any order.
    """

    contexts: np.ndarray  # [contexts] sorted codes; empty for the level without context
    pairs: np.ndarray  # [pairs] sorted codes
    counts: np.ndarray  # [pairs] weighted counts
    ends: np.ndarray  # [pairs] running sums of counts
    first: np.ndarray  # [contexts + 1] where each context's pairs begin
    totals: np.ndarray  # [contexts]


def _level(contexts: np.ndarray, pairs: np.ndarray, counts: np.ndarray, v: int) -> _Level:
    ends = np.cumsum(counts)
    first = np.searchsorted(pairs, np.arange(max(contexts.size, 1) + 1) * v)
    before = np.concatenate([[0.0], ends])
    return _Level(contexts, pairs, counts, ends, first, before[first[1:]] - before[first[:-1]])


def _find(sorted_codes: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Places of `codes` in `sorted_codes`, −1 where they don't occur."""
    place = np.minimum(np.searchsorted(sorted_codes, codes), sorted_codes.size - 1)
    return np.where(sorted_codes[place] == codes, place, -1)


@dataclass(frozen=True)
class NGram(TemplateLaw):
    """Ids 0 … vocab_size − 1 in rows of one length, `[n t]` of an integer dtype.

    Order 3 sees two ids of context; a row begins after a start symbol. Row weights weight the counts.
    Smoothing 0: a context never seen backs off, one that was seen gives 0 to what never followed it.
    Bias λ draws from p^{1/λ}, normalised at each position; λ = 0: the most likely id, on ties the lowest.
    """

    vocab_size: int
    order: int = 3
    smoothing: float = 4.0

    def __init__(self, vocab_size: int, *, order: int = 3, smoothing: float = 4.0) -> None:
        if vocab_size < 1 or order < 1:
            raise ValueError(f"NGram: vocab_size and order must be >= 1, got {vocab_size!r} and {order!r}")
        if not 0.0 <= smoothing < np.inf:
            raise ValueError(f"NGram: smoothing must be a finite number >= 0, got {smoothing!r}")
        object.__setattr__(self, "vocab_size", int(vocab_size))
        object.__setattr__(self, "order", int(order))
        object.__setattr__(self, "smoothing", float(smoothing))

    def fit(
        self, data: Int[np.ndarray, "n t"], weights: Float[np.ndarray, " n"] | None, rng: np.random.Generator
    ) -> FittedNGram:
        ids = self._ids(data)
        v = self.vocab_size
        mass = None if weights is None else np.repeat(weights, ids.shape[1])
        context = np.zeros(ids.size, dtype=np.int64)
        levels: list[_Level] = []
        for k in range(1, self.order + 1):
            codes = np.zeros(0, dtype=np.int64)
            if k > 1:
                codes, context = np.unique(
                    context * (v + 1) + _older(ids, k - 1, v).ravel(), return_inverse=True
                )
            pairs, where, count = np.unique(
                context * v + ids.ravel(), return_inverse=True, return_counts=True
            )
            counts = count.astype(np.float64) if mass is None else np.bincount(where, mass)
            levels.append(_level(codes, pairs, counts, v))
        return FittedNGram(self, tuple(levels), ids.shape[1], data.dtype)

    def _ids(self, data: np.ndarray) -> np.ndarray:
        if data.ndim != 2 or data.dtype.kind not in "iu" or data.size == 0:
            raise ValueError(f"NGram: data must be rows of integer ids [n t], got {data.dtype} {data.shape}")
        low, high = int(data.min()), int(data.max())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"NGram: ids must be in 0 … {self.vocab_size - 1} (vocab_size {self.vocab_size}), "
                f"got {low} … {high}"
            )
        return data.astype(np.int64)

    def combine(self, models: Sequence[FittedNGram], weights: Sequence[float]) -> NGramProduct:
        return NGramProduct(tuple(models), tuple(float(w) for w in weights))

    def load(self, state: dict[str, np.ndarray]) -> FittedNGram:
        levels = tuple(
            _level(state[f"contexts_{k}"], state[f"pairs_{k}"], state[f"counts_{k}"], self.vocab_size)
            for k in range(1, self.order + 1)
        )
        return FittedNGram(self, levels, int(state["length"]), state["ids"].dtype)


def _older(ids: np.ndarray, back: int, start: int) -> np.ndarray:
    """The ids `back` places before each position, the start symbol before the row's beginning."""
    shifted = np.full_like(ids, start)
    if back < ids.shape[1]:
        shifted[:, back:] = ids[:, : ids.shape[1] - back]
    return shifted


@dataclass(frozen=True, eq=False)
class FittedNGram:
    """What `NGram.fit` returns."""

    template: NGram
    levels: tuple[_Level, ...]
    length: int
    dtype: np.dtype[Any]

    def fit(self, data: np.ndarray, weights: np.ndarray | None, rng: np.random.Generator) -> FittedNGram:
        return self.template.fit(data, weights, rng)

    def load(self, state: dict[str, np.ndarray]) -> FittedNGram:
        return self.template.load(state)

    def state(self) -> dict[str, np.ndarray]:
        arrays = {"length": np.array(self.length), "ids": np.zeros(0, self.dtype)}
        for k, level in enumerate(self.levels, start=1):
            arrays |= {
                f"contexts_{k}": level.contexts,
                f"pairs_{k}": level.pairs,
                f"counts_{k}": level.counts,
            }
        return arrays

    def contexts(self, older: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The ids of the contexts of each length, −1 for unseen; `older[i]` are the ids i + 1 places back."""
        found = [np.zeros(older[0].shape if older else (1,), dtype=np.int64)]
        for level, token in zip(self.levels[1:], older, strict=False):
            inner = found[-1]
            place = _find(level.contexts, inner * (self.template.vocab_size + 1) + token)
            found.append(np.where(inner >= 0, place, -1))
        return found

    def log_prob(self, data: Int[np.ndarray, "n t"]) -> Float[np.ndarray, " n"]:
        """Nats a row, over all its ids."""
        ids = self.template._ids(data)
        v, a = self.template.vocab_size, self.template.smoothing
        context = np.zeros(ids.size, dtype=np.int64)
        p = np.full(ids.size, 1.0 / v)
        for k, level in enumerate(self.levels, start=1):
            if k > 1:
                place = _find(level.contexts, context * (v + 1) + _older(ids, k - 1, v).ravel())
                context = np.where(context >= 0, place, -1)
            pair = _find(level.pairs, context * v + ids.ravel())
            count = np.where((context >= 0) & (pair >= 0), level.counts[pair], 0.0)
            total = np.where(context >= 0, level.totals[context], 0.0)
            divisor = total + a
            p = np.where(divisor > 0, (count + a * p) / np.where(divisor > 0, divisor, 1.0), p)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(p).reshape(ids.shape).sum(axis=1))

    def sample(self, n: int, bias: float, rng: np.random.Generator) -> Int[np.ndarray, "n t"]:
        if bias != 1.0:
            return _sample_dense([self], [1.0], n, bias, rng)
        rows = np.empty((n, self.length), dtype=self.dtype)
        older = [np.full(n, self.template.vocab_size, dtype=np.int64) for _ in range(len(self.levels) - 1)]
        for position in range(self.length):
            contexts = self.contexts(older) if older else [np.zeros(n, dtype=np.int64)]
            ids = self._draw(contexts, rng)
            rows[:, position] = ids
            older = [ids, *older[:-1]] if older else older
        return rows

    def _draw(self, contexts: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """One id a row at λ = 1. Back-off is a mixture: level k is taken with share total/(total + a)."""
        v, a = self.template.vocab_size, self.template.smoothing
        n = contexts[0].size
        choose, inside = rng.random(n), rng.random(n)
        ids = np.minimum((inside * v).astype(np.int64), v - 1)
        open_ = np.arange(n)
        for level, context in zip(reversed(self.levels), reversed(contexts), strict=True):
            here = context[open_]
            total = np.where(here >= 0, level.totals[here], 0.0)
            share = np.where(total > 0, total / np.where(total > 0, total + a, 1.0), 0.0)
            take = choose[open_] < share
            rows = open_[take]
            c = here[take]
            # The pairs of a context lie together, so that one search in the running sums finds the id.
            end = level.ends[level.first[c + 1] - 1]
            target = end - (1.0 - inside[rows]) * level.totals[c]
            place = np.searchsorted(level.ends, target, side="right")
            place = np.clip(place, level.first[c], level.first[c + 1] - 1)
            ids[rows] = level.pairs[place] - c * v
            rest = open_[~take]
            left = share[~take]
            choose[rest] = (choose[rest] - left) / (1.0 - left)
            open_ = rest
        return ids

    def conditional(self, contexts: Sequence[np.ndarray]) -> Float[np.ndarray, "u v"]:
        """p(x | context) for u contexts, given by their ids at each level."""
        v, a = self.template.vocab_size, self.template.smoothing
        p = np.full((contexts[0].size, v), 1.0 / v)
        for level, context in zip(self.levels, contexts, strict=True):
            rows = np.flatnonzero(context >= 0)
            c = context[rows]
            p[rows] *= a / (level.totals[c] + a)[:, None]
            # All pairs of all these contexts: their rows repeated, their places counted on from the first.
            each = level.first[c + 1] - level.first[c]
            place = np.arange(each.sum()) + np.repeat(level.first[c] - (np.cumsum(each) - each), each)
            share = level.counts[place] / np.repeat(level.totals[c] + a, each)
            p[np.repeat(rows, each), level.pairs[place] - np.repeat(c, each) * v] += share
        return p

    def combine(self, models: Sequence[FittedNGram], weights: Sequence[float]) -> NGramProduct:
        return self.template.combine(models, weights)


@dataclass(frozen=True, eq=False)
class NGramProduct:
    """Π p_i(x|c)^{w_i}, normalised at each position: the log-linear combination of n-gram models.

    An id that the first model excludes stays excluded.
    """

    models: tuple[FittedNGram, ...]
    weights: tuple[float, ...]

    def sample(self, n: int, bias: float, rng: np.random.Generator) -> Int[np.ndarray, "n t"]:
        return _sample_dense(self.models, self.weights, n, bias, rng)

    def log_prob(self, data: Int[np.ndarray, "n t"]) -> Float[np.ndarray, " n"]:
        ids = self.models[0].template._ids(data)
        v = self.models[0].template.vocab_size
        total = np.zeros(ids.shape[0])
        deepest = max(len(model.levels) for model in self.models)
        older = [_older(ids, back, v) for back in range(1, deepest)]
        for position in range(ids.shape[1]):
            logits = _logits(self.models, self.weights, [o[:, position] for o in older], ids.shape[0])
            total += logits[np.arange(ids.shape[0]), ids[:, position]] - _logsumexp(logits)
        return total


def _logits(
    models: Sequence[FittedNGram], weights: Sequence[float], older: Sequence[np.ndarray], n: int
) -> np.ndarray:
    logits = np.zeros((n, models[0].template.vocab_size))
    with np.errstate(divide="ignore", invalid="ignore"):
        for model, weight in zip(models, weights, strict=True):
            depth = len(model.levels) - 1
            contexts = model.contexts(older[:depth]) if depth else [np.zeros(n, dtype=np.int64)]
            logits += weight * np.log(model.conditional(contexts))
    # −inf − (−inf): the first model excludes the id.
    return np.where(np.isnan(logits), -np.inf, logits)


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)))


def _sample_dense(
    models: Sequence[FittedNGram], weights: Sequence[float], n: int, bias: float, rng: np.random.Generator
) -> np.ndarray:
    """Rows from the sharpened (combined) conditionals, one dense table for each different context."""
    v, length = models[0].template.vocab_size, models[0].length
    rows = np.empty((n, length), dtype=models[0].dtype)
    older = np.full((max(len(m.levels) for m in models) - 1, n), v, dtype=np.int64)
    for position in range(length):
        uniform = rng.random(n)
        different, which = np.unique(older, axis=1, return_inverse=True)
        which = which.reshape(-1)
        # Rows in the order of their contexts: those of one block of contexts lie together.
        order = np.argsort(which, kind="stable")
        step = max(1, _TABLE // v)
        ids = np.empty(n, dtype=np.int64)
        for begin in range(0, different.shape[1], step):
            block = different[:, begin : begin + step]
            low, high = np.searchsorted(which[order], [begin, begin + block.shape[1]])
            here = order[low:high]
            logits = _logits(models, weights, list(block), block.shape[1])
            ids[here] = _pick(logits, which[here] - begin, uniform[here], bias)
        rows[:, position] = ids
        older = np.vstack([ids[None, :], older[:-1]]) if older.shape[0] else older
    return rows


def _pick(logits: np.ndarray, row: np.ndarray, uniform: np.ndarray, bias: float) -> np.ndarray:
    """Ids drawn from softmax(logits[row]/bias) by one uniform each; the first maximum for bias 0."""
    if bias == 0.0:
        return np.asarray(logits.argmax(axis=1)[row])
    p = np.exp((logits - logits.max(axis=1, keepdims=True)) / bias)
    v = p.shape[1]
    # One search for all: the running sums of table row i are moved to (i, i + 1].
    ends = np.cumsum(p, axis=1)
    ends /= ends[:, -1:]
    ends += np.arange(p.shape[0])[:, None]
    ids = np.searchsorted(ends.ravel(), row + uniform, side="right") - row * v
    # Rounding may land beside an id of probability 0 at the ends of a row: take the nearest that has some.
    possible = p > 0
    last = v - 1 - np.argmax(possible[:, ::-1], axis=1)
    return np.asarray(np.clip(ids, np.argmax(possible, axis=1)[row], last[row]))
