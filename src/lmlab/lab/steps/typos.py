"""Text with typing errors, the same for every variant and seed: how robust is a model to them?"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

SEED = 0  # of the errors: all variants meet the same ones


def with_typos(documents: Iterable[str], share: float) -> Iterator[str]:
    """Each letter goes wrong with probability `share`: it is left out, doubled, swapped with the next character
    or replaced by another letter of its document, each as often."""
    rng = random.Random(SEED)
    for text in documents:
        letters = [c for c in text if c.isalpha()]
        found: list[str] = []
        i = 0
        while i < len(text):
            here = text[i]
            i += 1
            if not here.isalpha() or rng.random() >= share:
                found.append(here)
                continue
            kind = rng.randrange(4)
            if kind == 1:
                found.append(here + here)
            elif kind == 2 and i < len(text):
                found.append(text[i] + here)
                i += 1
            elif kind == 3:
                found.append(rng.choice(letters))
        yield "".join(found) or text
