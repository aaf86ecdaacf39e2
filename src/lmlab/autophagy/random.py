"""Counter-based randomness: every draw of a loop can be made again from (seed, generation, purpose, index).

Philox is a keyed counter. The key is the seed and the purpose, the counter is the place in the loop, so that
no draw depends on what was drawn before it, on the loop, on the bias or on the number of workers. Two arms
with one seed therefore see the same real rows, and their difference is a paired one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence


class _Key(ISeedSequence):
    """A key as the seed of a Philox, which then takes it as it is.

    Philox(key=…) gives the same bits, but first asks the system for entropy that it doesn't use.
    """

    def __init__(self, words: np.ndarray) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return self.words

    def spawn(self, n_children: int) -> Sequence[ISeedSequence]:
        raise TypeError("a generator of one place has no children; take rng_for with another index")


@lru_cache(maxsize=1024)
def _key(seed: int, purpose: str) -> _Key:
    digest = hashlib.sha256(repr((seed, purpose)).encode()).digest()
    return _Key(np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64))


def rng_for(seed: int, generation: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The generator of one purpose at one place of a loop.

    Key: the first 16 bytes of sha256 over (seed, purpose); counter: (0, 0, index, generation). The loops use
    the purposes pool, real, synthetic (index: the model), subsample, fit and evaluate.
    """
    counter = np.array([0, 0, index, generation], dtype=np.uint64)
    key = _key(seed, purpose)
    return np.random.Generator(np.random.Philox(key, counter=counter))  # type: ignore[arg-type]  # numpy's stubs miss it
