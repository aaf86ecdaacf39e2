"""The fused loss in TRL's SFTTrainer: in the real one where it is installed, else in one of its documented shape.

TRL's trainer computes its own loss in `compute_loss`, calls it from `prediction_step`, and logs its own metrics.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmlab.hf import fused_trainer
from lmlab.losses import EMO, Cost, LinearLoss

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.peer

ARGUMENTS = {
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


def _model() -> Any:
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


def _rows() -> list[dict[str, list[int]]]:
    g = torch.Generator().manual_seed(1)
    rows = []
    for k in range(24):
        n = 4 + k % 7
        prompt = k % 3
        ids = torch.randint(3, 61, (n,), generator=g).tolist()
        rows.append({"input_ids": ids, "completion_mask": [0] * prompt + [1] * (n - prompt)})
    return rows


def _of_its_shape(kind: Callable[[type], type], folder: Path) -> Any:
    """A Trainer that overrides what SFTTrainer does."""

    class Tuner(transformers.Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            inputs["use_cache"] = False
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def prediction_step(self, model: Any, inputs: Any, only: bool, ignore_keys: Any = None) -> Any:
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad():
                return self.compute_loss(model, inputs, return_outputs=False), None, None

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs | {"own": 1.0}, start_time)

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        n = max(len(row["input_ids"]) for row in rows)
        ids, labels = torch.zeros(len(rows), n, dtype=torch.int64), torch.full((len(rows), n), -100)
        for at, row in enumerate(rows):
            given, kept = torch.tensor(row["input_ids"]), torch.tensor(row["completion_mask"])
            ids[at, : len(given)] = given
            labels[at, : len(given)] = torch.where(kept == 1, given, -100)
        return {"input_ids": ids, "labels": labels, "attention_mask": (ids != 0).long()}

    args = transformers.TrainingArguments(str(folder), remove_unused_columns=False, **ARGUMENTS)
    rest = {"train_dataset": _rows(), "eval_dataset": _rows()[:6], "data_collator": collate}
    return kind(Tuner)(model=_model(), args=args, **rest)


def _trl(kind: Callable[[type], type], folder: Path, **options: Any) -> Any:
    import datasets
    import tokenizers
    import trl

    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="w0", bos_token="w1", eos_token="w2"
    )
    own = {"bf16": False, "gradient_checkpointing": False}
    args = trl.SFTConfig(str(folder), **{**ARGUMENTS, **own, **options})
    data = datasets.Dataset.from_list(_rows())
    rest = {"train_dataset": data, "eval_dataset": data.select(range(6)), "processing_class": tokenizer}
    return kind(trl.SFTTrainer)(model=_model(), args=args, **rest)


def _check(plain: Any, fused: Any) -> None:
    plain.train()
    fused.train()
    for ours, theirs in zip(fused.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert any(
        not torch.equal(p, q) for p, q in zip(fused.model.parameters(), _model().parameters(), strict=True)
    )
    for a, b in zip(fused.state.log_history, plain.state.log_history, strict=True):
        if "loss" in b:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3) and a["ce"] > 0 and 0 <= a["accuracy"] <= 1
    ours, theirs = fused.evaluate(), plain.evaluate()
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-4)
    assert ours["eval_ce"] > 0


def _same(kind: type) -> type:
    return kind


def _fused(kind: type) -> type:
    made: type = fused_trainer(kind, LinearLoss())
    return made


def test_a_trainer_of_its_shape(tmp_path: Path) -> None:
    fused = _of_its_shape(_fused, tmp_path)
    _check(_of_its_shape(_same, tmp_path), fused)
    assert fused.state.log_history[0]["own"] == 1.0


def test_trls_own(tmp_path: Path) -> None:
    """In a process of its own: datasets pickles what it sees, and can't where a test's import hook was."""
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}; import runpy; "
        f"runpy.run_path({__file__!r}, run_name='worker')['work']({str(tmp_path)!r})"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def work(folder: str) -> None:
    """SFTTrainer with and without the fused loss: plainly, with checkpointed layers, with packed rows; and EMO."""
    packed = {"packing": True, "max_length": 16, "packing_strategy": "bfd", "padding_free": False}
    for options in ({}, {"gradient_checkpointing": True}, packed):
        _check(_trl(_same, Path(folder), **options), _trl(_fused, Path(folder), **options))
    criterion = LinearLoss(EMO(), Cost.frozen(_model().lm_head.weight, center=True))
    tuner = _trl(lambda kind: fused_trainer(kind, criterion), Path(folder))
    tuner.train()
    logged = [row for row in tuner.state.log_history if "loss" in row]
    assert len(logged) == 2 and all({"ce", "emo", "accuracy"} <= row.keys() for row in logged)
    assert logged[1]["ce"] < logged[0]["ce"]
