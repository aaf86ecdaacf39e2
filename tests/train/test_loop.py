"""One training loop: what it reports, what it leaves, and that nothing about it is left to chance."""

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmlab.attention import VQOptions
from lmlab.losses import LinearLoss
from lmlab.model import AttentionOptions, CheckpointError, ConfigError, Decoder, PositionOptions
from lmlab.train import (
    CostConfig,
    LossConfig,
    Step,
    TokenFile,
    TrainConfig,
    TrainingError,
    build_optimizer,
    learning_rate,
    train,
    weights_sha256,
)
from lmlab.train.objective import Objective
from lmlab.train.optim import set_learning_rate
from lmlab.train.precision import cpu_has_bfloat16
from train.training import CONFIG, MODEL, tokens


@pytest.fixture
def data(tmp_path: Path) -> TokenFile:
    return tokens(tmp_path / "train.tok")


def changed(**changes: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, **changes)


def test_the_loop_is_what_a_user_would_write(data: TokenFile) -> None:
    model, twin = Decoder(MODEL).double(), Decoder(MODEL).double()
    steps: list[Step] = []
    result = train(model, data, CONFIG, on_step=steps.append)
    optimizer = build_optimizer(twin, CONFIG)
    for step in range(CONFIG.steps):
        ids, targets = data.batch(step, batch_size=4, length=8, seed=0)
        loss = torch.nn.functional.cross_entropy(twin(ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        set_learning_rate(optimizer, learning_rate(step, CONFIG), CONFIG)
        optimizer.step()
        assert steps[step].loss == pytest.approx(float(loss.detach()), rel=1e-10)
        assert steps[step].grad_norm == pytest.approx(float(norm), rel=1e-9)
        assert steps[step].lr == learning_rate(step, CONFIG)
        assert (steps[step].step, steps[step].tokens) == (step + 1, 32 * (step + 1))
        assert steps[step].metrics["ce"] == pytest.approx(steps[step].loss, rel=1e-12)
        assert 0 <= steps[step].metrics["accuracy"] <= 1
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert result.history == steps
    assert (result.steps, result.tokens, result.resumed_at) == (24, 24 * 32, 0)
    assert result.precision == "float32"


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_add_up_to_the_batch(data: TokenFile, micro_batch: int) -> None:
    whole, parts = Decoder(MODEL).double(), Decoder(MODEL).double()
    a = train(whole, data, changed(steps=3))
    b = train(parts, data, changed(steps=3, micro_batch=micro_batch))
    for one, other in zip(a.history, b.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-12)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-12)


LOSSES: dict[str, LossConfig] = {
    "smoothed": LossConfig(label_smoothing=0.1, z_loss=1e-3),
    "focal": LossConfig("focal", gamma=1.0),
    "emo": LossConfig("emo"),
    "emo, live": LossConfig("emo-paper-adaptive", cost=CostConfig("live", center=True)),
    "emo, zero-one": LossConfig("emo2", cost=CostConfig("zero_one")),
    "emo, fixed weight": LossConfig("emo", balance="none", emo=0.3, cost=CostConfig(rank=4)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_and_reports_apart(data: TokenFile, name: str) -> None:
    result = train(Decoder(MODEL), data, changed(steps=12, loss=LOSSES[name]))
    last = result.history[-1]
    assert math.isfinite(last.loss) and last.metrics["ce"] < result.history[0].metrics["ce"]
    assert ("emo" in last.metrics) == name.startswith("emo")


def test_a_cost_from_a_file_is_read(data: TokenFile, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"embedding": torch.randn(17, 5)}, tmp_path / "cost.safetensors")
    loss = LossConfig("emo", cost=CostConfig("file", path=str(tmp_path / "cost.safetensors")))
    assert math.isfinite(train(Decoder(MODEL), data, changed(steps=2, loss=loss)).history[-1].loss)
    save_file({"a": torch.randn(17, 5), "b": torch.randn(1)}, tmp_path / "cost.safetensors")
    with pytest.raises(CheckpointError, match=r"must hold one tensor \[v k\], found \['a', 'b'\]"):
        train(Decoder(MODEL), data, changed(steps=2, loss=loss))


MODELS = {
    "untied": dataclasses.replace(MODEL, tie_embeddings=False),
    "mup": dataclasses.replace(MODEL, init="mup"),
    "learned scale": dataclasses.replace(MODEL, attention=AttentionOptions(scale="ssmax", qk_norm=True)),
    "hwfa2": dataclasses.replace(MODEL, hybrid="hwfa2", n_layers=3),
    "alibi": dataclasses.replace(MODEL, position=PositionOptions(kind="alibi")),
    "vq": dataclasses.replace(MODEL, mixer=("vq", "attention"), vq=VQOptions(codes=8, window=3)),
    "cosa": dataclasses.replace(MODEL, position=PositionOptions(cosa=True)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_model_trains_with_every_optimiser(data: TokenFile, name: str, optimizer: Any) -> None:
    rate = 1e-4 if name == "mup" else 1e-2
    result = train(Decoder(MODELS[name]), data, changed(steps=8, optimizer=optimizer, lr=rate))
    assert result.history[-1].loss < result.history[0].loss
    assert ("alive" in result.history[-1].metrics) == (name == "vq")


def test_held_out_loss_is_the_mean_over_the_file(data: TokenFile, tmp_path: Path) -> None:
    model = Decoder(MODEL).double()
    held_out = tokens(tmp_path / "held.tok")
    result = train(model, data, changed(steps=4, eval_every=2), held_out=held_out)
    assert [step.held_out is not None for step in result.history] == [False, True, False, True]
    raw = (tmp_path / "held.tok").read_bytes()[4096:]
    ids = torch.frombuffer(bytearray(raw), dtype=torch.uint16).long().unfold(0, 9, 8)[:64]
    with torch.no_grad():
        logits = model(ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert result.history[-1].held_out == pytest.approx(float(loss.detach()), rel=1e-10)
    assert model.training


def test_a_run_leaves_its_newest_checkpoints_and_history(data: TokenFile, tmp_path: Path) -> None:
    model = Decoder(MODEL)
    train(model, data, changed(keep=2), out=tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["history.jsonl", "step-00000020", "step-00000024"]
    last = tmp_path / "run" / "step-00000024"
    assert sorted(p.name for p in last.iterdir()) == [
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    state = json.loads((last / "state.json").read_text())
    assert state["step"] == 24 and state["precision"] == "float32" and state["threads"] >= 1
    assert state["weights_sha256"] == weights_sha256(last) == weights_sha256(model)
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert torch.equal(Decoder.load(last).head, model.head)


def test_two_same_runs_are_the_same(data: TokenFile) -> None:
    one, other = Decoder(MODEL), Decoder(MODEL)
    train(one, data, CONFIG)
    torch.manual_seed(99)
    train(other, data, CONFIG)
    assert weights_sha256(one) == weights_sha256(other)


def test_bfloat16_keeps_master_weights(data: TokenFile) -> None:
    model = Decoder(MODEL)
    result = train(model, data, changed(precision="bfloat16", steps=12))
    assert result.precision == "bfloat16" and model.head.dtype == torch.float32
    assert result.history[-1].loss < result.history[0].loss


def test_auto_precision_is_bfloat16_only_where_the_processor_has_it(
    data: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmlab.train.precision.cpu_has_bfloat16", lambda: False)
    assert train(Decoder(MODEL), data, changed(precision="auto", steps=1)).precision == "float32"
    monkeypatch.setattr("lmlab.train.precision.cpu_has_bfloat16", lambda: True)
    assert train(Decoder(MODEL).double(), data, changed(precision="auto", steps=1)).precision == "float32"
    assert isinstance(cpu_has_bfloat16(), bool)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "wanted"),
    [(9.0, 1.0, "bfloat16"), (1.0, 1.2, "bfloat16"), (1.0, 1.3, "float32")],
    ids=["slower", "hardly faster", "clearly faster"],
)
def test_auto_precision_needs_float32_to_be_clearly_faster(
    data: TokenFile, monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float, wanted: str
) -> None:
    """A close race would be decided anew by every run, and the same seed would give another model."""
    monkeypatch.setattr("lmlab.train.precision.cpu_has_bfloat16", lambda: True)
    times, threads = iter([0.0, float32, 0.0, bfloat16] * 4), torch.get_num_threads()
    monkeypatch.setattr("lmlab.train.precision.time.process_time", lambda: next(times))
    assert train(Decoder(MODEL), data, changed(precision="auto", steps=1)).precision == wanted
    assert torch.get_num_threads() == threads


def test_compiled_is_not_compiled(data: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    model, twin = Decoder(MODEL), Decoder(MODEL)
    with pytest.warns(
        UserWarning, match=r"torch.compile failed \(RuntimeError\), running without it"
    ) as seen:
        train(model, data, changed(compile=True, steps=3))
    assert len(seen) == 1
    train(twin, data, changed(steps=3))
    assert weights_sha256(model) == weights_sha256(twin)


class Auxiliary(torch.nn.Module):
    """A mixer with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any, Tensor]:
        return self.scale * x, state, self.scale.square()

    def init_state(self, batch_size: int, max_length: int) -> Any:
        return None

    def flops_per_token(self, length: int) -> int:
        return 0


def test_auxiliary_losses_are_minimised_too(data: TokenFile) -> None:
    config = dataclasses.replace(MODEL, mixer=("plug", "attention"))
    gradients = []
    for weight in (0.0, 1.0):
        model = Decoder(config, mixers={"plug": lambda config, layer: Auxiliary()}).double()
        ids, targets = data.batch(0, batch_size=4, length=8, seed=0)
        combined, loss = Objective(model, LinearLoss(), weight)(ids, targets)
        combined.backward()
        gradients.append(float(model.blocks[0].mixer.scale.grad))  # type: ignore[arg-type]
        assert float(combined.detach() - loss) == pytest.approx(weight)
    assert gradients[1] - gradients[0] == pytest.approx(2.0)


@pytest.mark.bad_input
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    data: TokenFile, tmp_path: Path
) -> None:
    def poison(step: Step) -> None:
        if step.step == 7:
            with torch.no_grad():
                model.norm.weight[0] = float("inf")

    model = Decoder(MODEL)
    with pytest.raises(TrainingError, match=r"loss nan.*at step 8 \(learning rate 0.00\d+\)") as caught:
        train(model, data, CONFIG, out=tmp_path / "run", on_step=poison)
    assert (caught.value.step, caught.value.lr) == (8, learning_rate(7, CONFIG))
    assert [p.name for p in (tmp_path / "run").glob("step-*")] == ["step-00000005"]
    result = train(Decoder(MODEL), data, CONFIG, out=tmp_path / "run")
    assert result.resumed_at == 5


@pytest.mark.bad_input
def test_what_does_not_fit_is_refused(data: TokenFile) -> None:
    with pytest.raises(ConfigError, match="'vocab_size' must be at least the token file's 17, got 16"):
        train(Decoder(dataclasses.replace(MODEL, vocab_size=16)), data, CONFIG)
    with pytest.raises(ValueError, match="windows of length 400 need at least 800"):
        train(Decoder(MODEL), data, changed(length=400))


def test_warnings_of_a_run_are_none(data: TokenFile, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Decoder(MODEL), data, CONFIG, out=tmp_path / "run")
