"""Training settings: plain values there and back, and errors that name the key."""

import json
from typing import Any

import pytest

from lmlab.model import ConfigError, Decoder, DecoderConfig
from lmlab.train import CostConfig, LossConfig, TrainConfig
from lmlab.train.objective import build_criterion


def test_plain_values_there_and_back() -> None:
    loss = LossConfig("emo", balance="none", emo=0.3, cost=CostConfig("head", center=True, rank=3))
    config = TrainConfig(steps=7, betas=(0.8, 0.9), loss=loss, clip=None, micro_batch=4)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"step": 3}, "step", "Did you mean 'steps'?"),
    ({"steps": "many"}, "steps", "must be an integer, got 'many'"),
    ({"lr": -1}, "lr", "must be a number > 0, got -1"),
    ({"lr": float("nan")}, "lr", "must be a finite number, got nan"),
    ({"betas": [0.9]}, "betas", "2 values, each a finite number"),
    ({"betas": [0.9, 1.0]}, "betas", "two numbers in [0, 1)"),
    ({"warmup": 1.5}, "warmup", "a number in [0, 1], got 1.5"),
    ({"micro_batch": 3}, "micro_batch", "a divisor of batch_size = 16, got 3"),
    ({"optimizer": "sgd"}, "optimizer", "one of 'adamw', 'muon', got 'sgd'"),
    ({"loss": {"cost": {"kind": "best"}}}, "loss.cost.kind", "one of 'head', 'live', 'zero_one', 'file'"),
    ({"loss": {"cost": {"kind": "file"}}}, "loss.cost.path", 'given when kind = "file"'),
    ({"loss": {"label_smoothing": 1.0}}, "loss.label_smoothing", "a number in [0, 1), got 1.0"),
    ({"keep": 0}, "keep", "an integer >= 1, got 0"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("values", "key", "text"), WRONG, ids=[str(case[0]) for case in WRONG])
def test_wrong_values_are_refused_by_key(values: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(values)
    assert caught.value.key == key
    assert text in str(caught.value)


@pytest.mark.bad_input
def test_an_option_that_a_loss_has_not_is_refused() -> None:
    head = Decoder(DecoderConfig(9, d_model=8, n_heads=2)).head
    with pytest.raises(ConfigError, match=r"'loss\.gamma'"):
        build_criterion(LossConfig("ce", gamma=2.0), head)
    with pytest.raises(ConfigError, match=r"'loss\.name'.*cross"):
        build_criterion(LossConfig("cross"), head)
