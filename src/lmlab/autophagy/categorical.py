"""Loops of a categorical law: rows are ids, a model is the ids' shares. Sets are drawn as counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lmlab.autophagy.blocks import in_blocks
from lmlab.autophagy.checks import whole
from lmlab.autophagy.loops import Loop, Plan, schedule
from lmlab.autophagy.random import rng_for
from lmlab.autophagy.theory import distribution

_BLOCK_BYTES = 64 << 20


def kept_generations(record: Sequence[int] | None, generations: int) -> np.ndarray:
    """The generations that `record` names, ascending; None: all. ValueError for others than 1 … G."""
    if record is None:
        return np.arange(1, generations + 1)
    kept = np.unique(np.asarray(record, dtype=np.int64))
    if kept.size == 0 or kept[0] < 1 or kept[-1] > generations:
        raise ValueError(f"record must name generations in 1 … {generations}, got {record!r}")
    return kept


def categorical(
    loop: Loop,
    p0: Float[np.ndarray, " v"] | Sequence[float],
    *,
    generations: int,
    trials: int,
    seed: int = 0,
    record: Sequence[int] | None = None,
) -> Float[np.ndarray, "g r v"]:
    """Fitted probabilities of `trials` runs of any loop, real law p0, at the generations of `record`.

    One multinomial draw a set and generation, whatever the number of rows (Wright–Fisher's model). A
    subsample is drawn exactly, too: multivariate hypergeometric.
    """
    p = distribution("p0", p0)
    kept = kept_generations(record, whole("generations", generations, 1))
    plans = schedule(loop, int(kept[-1]))
    found = np.empty((kept.size, whole("trials", trials, 1), p.size))

    def work(block: int, part: slice) -> None:
        _block(plans, p, kept, rng_for(seed, 0, "categorical", block), found[:, part])

    in_blocks(work, trials, max(1, _BLOCK_BYTES // (4 * 8 * p.size)), None)
    return found


def _block(
    plans: Sequence[Plan], p0: np.ndarray, kept: np.ndarray, rng: np.random.Generator, found: np.ndarray
) -> None:
    """Fills found [kept trials v] for one block of trials."""
    trials = found.shape[1]
    last_use = {(p.born, p.model): t for t, plan in enumerate(plans, start=1) for p in plan.parts}
    model_use = {model: born for born, model in sorted(last_use)}
    sets: dict[tuple[int, int], np.ndarray] = {}
    models: dict[int, np.ndarray] = {0: np.broadcast_to(p0, (trials, p0.size))}
    for t, plan in enumerate(plans, start=1):
        total = np.zeros((trials, p0.size))
        for part in plan.parts:
            name = (part.born, part.model)
            if name not in sets:
                sets[name] = rng.multinomial(part.n, models[part.model])
            total += part.weight * sets[name]
            if last_use[name] == t:
                del sets[name]
        if plan.budget is not None:
            total = _subsample(total, plan.budget, rng)
        models[t] = total / total.sum(axis=1, keepdims=True)
        for row in np.flatnonzero(kept == t):
            found[row] = models[t]
        for model in [m for m in models if m > 0 and model_use.get(m, 0) <= t]:
            del models[model]


def _subsample(counts: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
    """`budget` of the counted rows of each trial, uniformly without replacement."""
    left = np.rint(counts).astype(np.int64)
    rest = left.sum(axis=1)
    open_ = np.full(left.shape[0], budget)
    taken = np.zeros(left.shape)
    for i in range(left.shape[1]):
        rest -= left[:, i]
        # numpy refuses to draw from nothing; then all that is still open is this id's.
        drawn = rng.hypergeometric(left[:, i], rest, np.minimum(open_, left[:, i] + rest))
        taken[:, i] = drawn
        open_ -= drawn
    return taken
