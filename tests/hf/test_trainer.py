"""The fused Trainer beside the plain one: the same weights after training, and what is logged."""

import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmlab.hf import FusedLossMixin, fused_trainer
from lmlab.losses import EMO, Cost, LinearLoss

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.peer


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def data(rows: int = 24) -> list[dict[str, Tensor]]:
    """Rows of very different numbers of labels, so that a mean of means isn't the mean."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 61, (rows, 10), generator=g)
    labels = ids.clone()
    for row in range(rows):
        labels[row, : (7 * row) % 9] = -100
    return [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]


def trainer(kind: type, folder: Path, network: Any = None, **options: Any) -> Any:
    rest = {key: options.pop(key) for key in ("compute_metrics", "eval_dataset") if key in options}
    arguments = {
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "logging_steps": 2,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    args = transformers.TrainingArguments(output_dir=str(folder), **{**arguments, **options})
    return kind(model=network or model(), args=args, train_dataset=data(), **rest)


def emo() -> LinearLoss:
    """CE and a part of EMO, with the cost of the model's head at its start."""
    return LinearLoss(EMO("none", emo=0.3), Cost.frozen(model().lm_head.weight))


def weights(ran: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in ran.model.named_parameters()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_cross_entropy_trains_as_the_plain_trainer_does(tmp_path: Path) -> None:
    plain = trainer(transformers.Trainer, tmp_path)
    fused = trainer(fused_trainer(transformers.Trainer, LinearLoss()), tmp_path)
    start = weights(plain)
    plain.train()
    fused.train()
    same(weights(fused), weights(plain))
    assert any(not torch.equal(start[name], now) for name, now in weights(fused).items())
    ours, theirs = ([h for h in ran.state.log_history if "loss" in h] for ran in (fused, plain))
    assert len(ours) == len(theirs) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["ce"] == pytest.approx(a["loss"], rel=2e-2)  # a mean over tokens beside a mean over steps
        assert 0 <= a["accuracy"] <= 1 and "emo" not in a
    assert "ce" not in fused.state.log_history[-1] and "train_loss" in fused.state.log_history[-1]


def test_a_model_that_takes_no_item_count_gets_a_mean_a_batch(tmp_path: Path) -> None:
    network = model()
    network.accepts_loss_kwargs = False
    plain = trainer(transformers.Trainer, tmp_path, network)
    network = model()
    network.accepts_loss_kwargs = False
    fused = trainer(fused_trainer(transformers.Trainer, LinearLoss()), tmp_path, network)
    plain.train()
    fused.train()
    assert fused.loss_is_scaled_for_ga is False
    same(weights(fused), weights(plain))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing")  # the name that old versions have too
def test_emo_with_a_frozen_head_and_checkpointed_layers(tmp_path: Path) -> None:
    results = []
    for checkpointing in (False, True):
        network = model()
        network.lm_head.weight.requires_grad_(False)
        criterion = LinearLoss(EMO("none", emo=0.3), Cost.frozen(network.lm_head.weight, center=True))
        kind = fused_trainer(transformers.Trainer, criterion)
        fused = trainer(kind, tmp_path, network, gradient_checkpointing=checkpointing)
        fused.train()
        results.append(weights(fused))
        assert torch.equal(network.lm_head.weight, model().lm_head.weight)
        logged = next(h for h in fused.state.log_history if "loss" in h)
        assert logged["loss"] == pytest.approx(logged["ce"] + 0.3 * logged["emo"], rel=2e-2)
    same(*results)


def test_bfloat16(tmp_path: Path) -> None:
    fused = trainer(fused_trainer(transformers.Trainer, LinearLoss()), tmp_path, bf16=True)
    plain = trainer(transformers.Trainer, tmp_path, bf16=True)
    ours, theirs = fused.train().training_loss, plain.train().training_loss
    assert ours == pytest.approx(theirs, rel=1e-2)
    assert weights(fused)["lm_head.weight"].dtype == torch.float32


def test_evaluation(tmp_path: Path) -> None:
    fused = trainer(fused_trainer(transformers.Trainer, LinearLoss()), tmp_path, eval_dataset=data(6))
    plain = trainer(transformers.Trainer, tmp_path, eval_dataset=data(6))
    ours, theirs = fused.evaluate(), plain.evaluate()
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)
    count = sum(int((row["labels"][1:] != -100).sum()) for row in data(6))
    with torch.no_grad():
        logits = model()(input_ids=torch.stack([row["input_ids"] for row in data(6)])).logits
    labels = torch.stack([row["labels"] for row in data(6)])
    ce = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert ours["eval_ce"] == pytest.approx(float(ce) / count, rel=1e-5)
    assert fused.evaluate(metric_key_prefix="held_out").keys() >= {"held_out_ce", "held_out_accuracy"}
    assert fused.predict(data(6)).metrics["test_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)


@pytest.mark.bad_input
def test_what_the_fused_loss_cannot_do_is_refused_at_the_start(tmp_path: Path) -> None:
    kind = fused_trainer(transformers.Trainer, LinearLoss())
    asks = trainer(kind, tmp_path, compute_metrics=lambda _: {})
    with pytest.raises(ValueError, match=r"compute_metrics needs logits.*leave compute_metrics out"):
        asks.train()
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1.*LinearLoss\(…, label_smoothing=0.1\)"):
        trainer(kind, tmp_path, label_smoothing_factor=0.1).train()
    with pytest.raises(TypeError, match=r"trainer must be a Trainer class"):
        fused_trainer(dict, LinearLoss())
    with pytest.raises(TypeError, match=r"criterion must be a LinearLoss.*got CrossEntropyLoss"):
        fused_trainer(transformers.Trainer, nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"reduction='sum'; a Trainer needs"):
        fused_trainer(transformers.Trainer, LinearLoss(reduction="sum"))


def test_the_class_is_the_mixin_before_the_trainer() -> None:
    kind = fused_trainer(transformers.Trainer, LinearLoss())
    assert kind.__name__ == "FusedTrainer" and kind.__mro__[1:3] == (FusedLossMixin, transformers.Trainer)


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Two processes of one row a step, gradients averaged, are one process of two rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}; import runpy; "
        f"runpy.run_path({__file__!r}, run_name='worker')['work']({str(tmp_path)!r})"
    )
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    alone = trainer(fused_trainer(transformers.Trainer, emo()), tmp_path)
    alone.train()
    same(load_file(tmp_path / "weights.safetensors"), weights(alone))
    logged = json.loads((tmp_path / "log.json").read_text())
    for ours, theirs in zip(logged, alone.state.log_history, strict=True):
        for key in {"loss", "ce", "emo", "accuracy"} & ours.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3)


def work(folder: str) -> None:
    """One of two processes."""
    kind = fused_trainer(transformers.Trainer, emo())
    fused = trainer(kind, Path(folder), per_device_train_batch_size=1, ddp_backend="gloo")
    fused.train()
    if fused.args.process_index == 0:
        save_file(weights(fused), Path(folder) / "weights.safetensors")
        (Path(folder) / "log.json").write_text(json.dumps(fused.state.log_history))
    # What holds the group goes before it: the last to let go of it waits for its threads, which may need Python.
    del fused
    gc.collect()
    torch.distributed.destroy_process_group()
