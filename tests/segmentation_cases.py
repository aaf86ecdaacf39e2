"""Random vocabularies and texts that are small enough to write out every segmentation, and a test of draws."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from lmlab.tokenize import Tokenizer, reference


class Case(NamedTuple):
    vocabulary: dict[bytes, float]
    text: bytes
    alpha: float
    tok: Tokenizer

    def ids(self, y: reference.Segmentation) -> tuple[int, ...]:
        return tuple(self.tok.piece_to_id(piece) for piece in y)


def cases(count: int, seed: int, *, longest: int = 12, pieces: int = 12) -> Iterator[Case]:
    """Vocabularies over two to four letters, half of their pieces cut from the text (1 to `longest` bytes)."""
    rng = random.Random(seed)
    for i in range(count):
        letters = b"abcd"[: rng.randint(2, 4)]
        text = bytes(rng.choice(letters) for _ in range(1 + i % longest))
        found = {bytes([letter]) for letter in letters}
        for _ in range(rng.randint(1, pieces)):
            found.add(bytes(rng.choice(letters) for _ in range(rng.randint(2, 5))))
            start = rng.randrange(len(text))
            found.add(text[start : start + rng.randint(1, 5)])
        vocabulary = {piece: rng.uniform(-7, 1) for piece in sorted(found)}
        alpha = rng.choice([0.0, 0.1, 0.3, 0.5, 0.9, 1.0, 1.7, 3.0])
        yield Case(vocabulary, text, alpha, Tokenizer(list(vocabulary), list(vocabulary.values())))


def p_value(draws: Sequence[tuple[int, ...]], law: Mapping[tuple[int, ...], float]) -> float | None:
    """Of the chi-square test of draws against a law; None if the law leaves nothing to test.

    Cells of which fewer than five draws are expected are joined. A draw outside of the law has p = 0.
    """
    counts = Counter(draws)
    if not counts.keys() <= law.keys():
        return 0.0
    n = len(draws)
    observed, expected = [], []
    rest_observed, rest_expected = 0, 0.0
    for y, q in sorted(law.items(), key=lambda item: -item[1]):
        if q * n >= 5:
            observed.append(counts[y])
            expected.append(q * n)
        else:
            rest_observed += counts[y]
            rest_expected += q * n
    if rest_expected >= 5:
        observed.append(rest_observed)
        expected.append(rest_expected)
    elif expected:
        observed[-1] += rest_observed
        expected[-1] += rest_expected
    if len(expected) < 2:
        return None
    statistic = float(((np.array(observed) - expected) ** 2 / expected).sum())
    return float(stats.chi2.sf(statistic, len(expected) - 1))


def uniformity(p_values: Sequence[float]) -> float:
    """p of the Kolmogorov-Smirnov test that p-values are uniform, as they are if every law is the right one."""
    return float(stats.kstest(p_values, "uniform").pvalue)
