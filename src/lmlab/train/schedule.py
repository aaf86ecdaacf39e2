"""The learning rate, a pure function of the step."""

from __future__ import annotations

import math

from lmlab.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step `step` (0 is the first) of `config.steps`.

    s = step + 1, w = warmup · steps; s/w · lr while s <= w, then
    cosine: lr·(r + (1 − r)(1 + cos π u)/2), u = (s − w)/(steps − w), r = min_lr_ratio;
    wsd: lr until steps·(1 − decay), then in a straight line to r·lr; constant: lr.
    """
    s, total, w = step + 1, config.steps, config.warmup * config.steps
    if s <= w:
        return config.lr * s / w
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        u = min(1.0, (s - w) / (total - w)) if total > w else 1.0
        share = (1 + math.cos(math.pi * u)) / 2
    else:
        start = total * (1 - config.decay)
        share = 1.0 if s <= start else max(0.0, (total - s) / (total - start))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)
