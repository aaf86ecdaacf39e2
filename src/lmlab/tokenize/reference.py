"""The slow oracle: every segmentation of a text, one by one, in plain Python and float64.

A vocabulary is a mapping from pieces (bytes) to scores here; a segmentation is a tuple of pieces.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

Vocabulary = Mapping[bytes, float]
Segmentation = tuple[bytes, ...]


def segmentations(vocabulary: Vocabulary, text: bytes) -> Iterator[Segmentation]:
    """All y whose pieces joined are the text."""
    if not text:
        yield ()
    for end in range(1, len(text) + 1):
        if text[:end] in vocabulary:
            for rest in segmentations(vocabulary, text[end:]):
                yield (text[:end], *rest)


def score(vocabulary: Vocabulary, y: Segmentation) -> float:
    """S(y)."""
    return math.fsum(vocabulary[piece] for piece in y)


def log_partition(vocabulary: Vocabulary, text: bytes, alpha: float) -> float:
    """log Z = log of the sum of exp(alpha S(y))."""
    return log_sum(alpha * score(vocabulary, y) for y in segmentations(vocabulary, text))


def law(vocabulary: Vocabulary, text: bytes, alpha: float) -> dict[Segmentation, float]:
    """q(y) = exp(alpha S(y)) / Z."""
    log_z = log_partition(vocabulary, text, alpha)
    return {y: math.exp(alpha * score(vocabulary, y) - log_z) for y in segmentations(vocabulary, text)}


def entropy(vocabulary: Vocabulary, text: bytes, alpha: float) -> float:
    """Minus the expected log q(y), in nats."""
    return -math.fsum(q * math.log(q) for q in law(vocabulary, text, alpha).values() if q > 0)


def marginals(vocabulary: Vocabulary, text: bytes, alpha: float) -> dict[bytes, float]:
    """How often each piece is expected."""
    counts: dict[bytes, float] = defaultdict(float)
    for y, q in law(vocabulary, text, alpha).items():
        for piece in y:
            counts[piece] += q
    return dict(counts)


def viterbi(vocabulary: Vocabulary, text: bytes) -> Segmentation:
    """A best segmentation by dynamic programming; on ties the longest last piece."""
    best = [0.0] + [-math.inf] * len(text)
    last = [b""] * (len(text) + 1)
    for end in range(1, len(text) + 1):
        for start in range(end):  # longest candidate first
            piece = text[start:end]
            if piece in vocabulary and best[start] + vocabulary[piece] > best[end]:
                best[end] = best[start] + vocabulary[piece]
                last[end] = piece
    result: Segmentation = ()
    end = len(text)
    while end:
        result = (last[end], *result)
        end -= len(last[end])
    return result


def viterbi_sampling_law(vocabulary: Vocabulary, text: bytes, alpha: float) -> dict[Segmentation, float]:
    """The law of the biased rule, by following every branch that its coin tosses can take.

    From left to right over end positions; the first candidate is kept, each later one replaces the kept one with
    probability sigma(alpha (its path's score - the kept path's score)).
    """
    kept_paths: dict[tuple[Segmentation, ...], float] = {((),): 1.0}  # the kept path of each position so far
    for end in range(1, len(text) + 1):
        after: dict[tuple[Segmentation, ...], float] = defaultdict(float)
        for kept, chance in kept_paths.items():
            outcomes: list[tuple[Segmentation, float]] = []
            for start in range(end):
                piece = text[start:end]
                if piece not in vocabulary:
                    continue
                path = (*kept[start], piece)
                replaced: list[tuple[Segmentation, float]] = []
                taken = 0.0
                for other, p in outcomes:
                    wins = sigmoid(alpha * (score(vocabulary, path) - score(vocabulary, other)))
                    replaced.append((other, p * (1 - wins)))
                    taken += p * wins
                outcomes = [*replaced, (path, taken if outcomes else 1.0)]
            for path, p in outcomes:
                after[(*kept, path)] += chance * p
        kept_paths = after
    result: dict[Segmentation, float] = defaultdict(float)
    for kept, chance in kept_paths.items():
        result[kept[-1]] += chance
    return dict(result)


def compounded_law(vocabulary: Vocabulary, text: bytes, alpha: float) -> dict[Segmentation, float]:
    """What Hugging Face's `Unigram(alpha=...)` draws from: forward sums F[b] = log sum exp(alpha (s + F[a])).

    The last piece is drawn with odds exp(alpha s + F[a]), then the one before it, and so on; these would be the
    right odds if F were log sum exp(alpha s + F[a]). As it is, the temperature compounds along the path, because
    F already holds an alpha; for alpha = 1 it is the true law.
    """

    def candidates(end: int) -> list[tuple[bytes, int, float]]:
        """(piece, start, score) of the pieces that end there and can be reached."""
        pieces = [(text[start:end], start) for start in range(end)]
        return [
            (p, start, vocabulary[p]) for p, start in pieces if p in vocabulary and forward[start] > -math.inf
        ]

    forward = [0.0] + [-math.inf] * len(text)
    odds: list[float] = [0.0] * (len(text) + 1)  # log of the sum of the odds at each end
    for end in range(1, len(text) + 1):
        found = candidates(end)
        if found:
            forward[end] = log_sum(alpha * (s + forward[start]) for _, start, s in found)
            odds[end] = log_sum(alpha * s + forward[start] for _, start, s in found)
    result: dict[Segmentation, float] = {}
    for y in segmentations(vocabulary, text):
        end, log_q = len(text), 0.0
        for piece in reversed(y):
            start = end - len(piece)
            log_q += alpha * vocabulary[piece] + forward[start] - odds[end]
            end = start
        result[y] = math.exp(log_q)
    return result


def log_sum(powers: Iterable[float]) -> float:
    """log of the sum of exp(power)."""
    found = list(powers)
    top = max(found)
    return top + math.log(math.fsum(math.exp(power - top) for power in found))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
