"""What TensorBoard is given."""

import sys
from pathlib import Path

import pytest

from lmlab.model import Decoder
from lmlab.train import Step, TrainConfig, tensorboard, train
from train.training import CONFIG, MODEL, tokens

pytest.importorskip("tensorboard")


def scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(path))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_every_step_is_a_point(tmp_path: Path) -> None:
    data = tokens(tmp_path / "train.tok")
    config = TrainConfig.from_dict({**CONFIG.to_dict(), "steps": 4, "eval_every": 2})
    result = train(Decoder(MODEL), data, config, held_out=data, on_step=tensorboard(tmp_path / "events"))
    found = scalars(tmp_path / "events")
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4]
    assert [v for _, v in found["train/loss"]] == pytest.approx([s.loss for s in result.history])
    assert [step for step, _ in found["train/held_out"]] == [2, 4]
    assert {"train/lr", "train/grad_norm", "train/tokens_per_second", "train/accuracy"} <= set(found)


def test_steps_that_are_done_again_replace_those_before(tmp_path: Path) -> None:
    for first, loss in ((1, 9.0), (3, 5.0)):
        on_step = tensorboard(tmp_path)
        for step in range(first, first + 4):
            on_step(Step(step, loss, 0.1, 1.0, 8 * step, 1.0))
    found = scalars(tmp_path)["train/loss"]
    assert found == [(1, 9.0), (2, 9.0), (3, 5.0), (4, 5.0), (5, 5.0), (6, 5.0)]


def test_without_tensorboard_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'lmlab\[track\]'"):
        tensorboard(tmp_path)
