"""Counter-based randomness: every draw of a loop can be made again from (seed, generation, purpose, index).

Philox is a keyed counter. The key is the seed and the purpose, the counter is the place in the loop, so that
no draw depends on what was drawn before it, on the loop, on the bias or on the number of workers. Two arms
with one seed therefore see the same real rows, and their difference is a paired one.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=1024)
def _key(seed: int, purpose: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(repr((seed, purpose)).encode()).digest()[:16], dtype="<u8").astype(
        np.uint64
    )


def rng_for(seed: int, generation: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The generator of one purpose at one place of a loop.

    Key: the first 16 bytes of sha256 over (seed, purpose); counter: (0, 0, index, generation). The loops use
    the purposes pool, real, synthetic (index: the model), subsample, fit and evaluate.
    """
    counter = np.array([0, 0, index, generation], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=counter))
