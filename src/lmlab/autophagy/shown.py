"""What the report shows of the models of an arm: rows that they make, generation by generation."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmlab.autophagy import figures
from lmlab.autophagy.history import History
from lmlab.autophagy.options import GeneratorName
from lmlab.autophagy.random import rng_for

KINDS = {"ngram": "text", "decoder": "text", "mixture": "points", "kde": "points", "diffusion": "digits"}
SHOWN = {"text": 3, "points": 250, "digits": 16}  # rows a generation
COUNTED = 500  # rows in which modes are counted


def rows_of(generator: GeneratorName, rows: np.ndarray) -> dict[str, Any] | None:
    """`{"kind", "rows"}`: texts, points or the 64 grey values of digits; None where there is nothing to see.

    Rows of ids that are no bytes (a tokenizer's) aren't shown.
    """
    kind = KINDS.get(generator)
    if kind is None or (kind == "text" and int(rows.max()) > 255):
        return None
    rows = rows[: SHOWN[kind]]
    if kind == "text":
        return {"kind": kind, "rows": [bytes(row.tolist()).decode("utf-8", "replace") for row in rows]}
    return {"kind": kind, "rows": np.round(rows[:, :64], 2).tolist()}


def samples(generator: GeneratorName, history: History, bias: float) -> list[dict[str, Any]]:
    """`rows_of` models of the first seed, at the first generations, the middle one and the last."""
    last = history.values.shape[1]
    found = []
    for t in sorted({1, min(2, last), (last + 1) // 2, last}):
        told = (
            rows_of(generator, _drawn(history, 0, t, bias, SHOWN[KINDS[generator]]))
            if generator in KINDS
            else None
        )
        if told is not None:
            found.append({"generation": t} | told)
    return found


def modes(generator: GeneratorName, history: History, bias: float) -> dict[str, list[float | None]] | None:
    """Modes left and the mean variance in a mode at each generation, mean over the seeds; of 25 modes only."""
    if KINDS.get(generator) != "points":
        return None
    counted = np.array(
        [
            [
                figures.count_modes(_drawn(history, s, t, bias, COUNTED))
                for t in range(1, history.values.shape[1] + 1)
            ]
            for s in range(len(history.seeds))
        ]
    )
    left, variance = counted.mean(axis=0).T
    return {"left": left.tolist(), "variance": [float(v) if np.isfinite(v) else None for v in variance]}


def _drawn(history: History, index: int, generation: int, bias: float, n: int) -> np.ndarray:
    seed = history.seeds[index]
    model = history.model(seed, generation)
    return model.sample(n, bias, rng_for(seed, generation, "shown"))
