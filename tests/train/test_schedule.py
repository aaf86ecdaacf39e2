"""The learning rate against its formula, at every step."""

import dataclasses
import math

import pytest

from lmlab.train import TrainConfig, learning_rate


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.33, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_cosine(steps: int, warmup: float) -> None:
    config = TrainConfig(steps=steps, lr=0.01, warmup=warmup, min_lr_ratio=0.1)
    w = warmup * steps
    for step in range(steps):
        s = step + 1
        if s <= w:
            expected = 0.01 * s / w
        else:
            u = (s - w) / (steps - w)
            expected = 0.01 * (0.1 + 0.9 * (1 + math.cos(math.pi * u)) / 2)
        assert learning_rate(step, config) == pytest.approx(expected, rel=1e-14)
    if warmup < 1:
        assert learning_rate(steps - 1, config) == pytest.approx(0.001, rel=1e-12)


def test_wsd_is_flat_and_then_a_straight_line() -> None:
    config = TrainConfig(steps=100, lr=1.0, warmup=0.1, decay=0.2, min_lr_ratio=0.25, schedule="wsd")
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([s / 10 for s in range(1, 11)])
    assert set(rates[10:80]) == {1.0}
    assert rates[80:] == pytest.approx([1 - 0.75 * s / 20 for s in range(1, 21)])
    constant = dataclasses.replace(config, schedule="constant")
    assert {learning_rate(step, constant) for step in range(9, 100)} == {1.0}
