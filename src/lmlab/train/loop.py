"""The training loop."""

from __future__ import annotations

import inspect
import json
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lmlab.model import CheckpointError, ConfigError, Decoder
from lmlab.retry import Retry, disk
from lmlab.train.config import TrainConfig
from lmlab.train.data import TokenFile
from lmlab.train.errors import TrainingError
from lmlab.train.interrupt import Interruption, interruptions
from lmlab.train.objective import Objective, autocast, build_criterion, held_out_loss
from lmlab.train.optim import build_optimizer, set_learning_rate
from lmlab.train.precision import choose_precision
from lmlab.train.processes import Processes, processes
from lmlab.train.resume import latest, save_checkpoint, start_over
from lmlab.train.schedule import learning_rate

HELD_OUT_WINDOWS = 64
HISTORY = "history.jsonl"
# Settings that may change between a run and its continuation without changing a weight.
FREE_SETTINGS = ("save_every", "keep", "eval_every")


@dataclass(frozen=True)
class Step:
    """One finished step. step: steps done, 1 after the first. loss: of the step's batch, over all processes,
    without auxiliary losses. tokens: seen so far. seconds: since this call of `train` began. held_out: mean
    cross-entropy (nats a token) on the held-out file, every `eval_every` steps and at the end. metrics: what
    the loss and the mixers report (ce, emo, accuracy, alive, relative_error)."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    held_out: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """history: every step, those of the runs before a resume too. seconds: of this call. resumed_at:
    steps that were done already. precision: "float32" or "bfloat16", as it was chosen."""

    history: list[Step]
    steps: int
    tokens: int
    seconds: float
    resumed_at: int
    precision: str


def train(
    model: Decoder,
    data: TokenFile,
    config: TrainConfig,
    *,
    out: Path | str | None = None,
    held_out: TokenFile | None = None,
    on_step: Callable[[Step], None] | None = None,
    resume: bool = True,
    retry: Retry | None = None,
) -> TrainResult:
    """Train `model` in place for `config.steps` steps.

    With `out`, checkpoints go to `out/step-XXXXXXXX` every `save_every` steps and at the end, and a second
    call goes on from the newest one: the weights are then, bit for bit, those of a run that was never stopped
    (same machine, build, threads and processes). resume=False removes old checkpoints. SIGTERM and SIGINT
    finish the step, save and leave (SystemExit(143), KeyboardInterrupt). A checkpoint whose write fails for a
    while is written again under `retry` (`lmlab.retry.disk()`); a step never is. Under torchrun the processes
    share each batch.

    Raises TrainingError when loss or gradient is not finite, CheckpointError for checkpoints of another run,
    ConfigError or ValueError for settings that don't fit model or data.
    """
    out = None if out is None else Path(out)
    with interruptions() as interruption, _threads_kept():
        with processes(model.head.device) as group:
            run = _Run(model, data, config, out, held_out, on_step, group, retry or disk())
            result = run.run(resume, interruption)
        if result is None:
            interruption.leave()
        return result


class _Run:
    """The parts of one call of `train`."""

    def __init__(
        self,
        model: Decoder,
        data: TokenFile,
        config: TrainConfig,
        out: Path | None,
        held_out: TokenFile | None,
        on_step: Callable[[Step], None] | None,
        group: Processes,
        retry: Retry,
    ) -> None:
        _check(model, data, config, group.world)
        self.model, self.data, self.config, self.out = model, data, config, out
        self.held_out, self.on_step, self.group, self.retry = held_out, on_step, group, retry
        self.device = model.head.device
        self.criterion = build_criterion(config.loss, model.head)
        self.optimizer: Optimizer = build_optimizer(model, config)
        self.history: list[Step] = []
        self.precision = ""

    def run(self, resume: bool, interruption: Interruption) -> TrainResult | None:
        """The whole training; None if a signal ended it (in all processes, at the same step)."""
        config, start = self.config, time.monotonic()
        first = self._begin(resume)
        dtype = torch.bfloat16 if self.precision == "bfloat16" else None
        objective = self._objective()
        self.model.train()
        for step in range(first, config.steps):
            rate = learning_rate(step, config)
            set_learning_rate(self.optimizer, rate, config)
            loss, grad_norm = self._step(objective, step, dtype)
            loss, interrupted = self.group.mean([loss, float(interruption.signal != 0)], self.device)
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise TrainingError(step + 1, rate, loss, grad_norm)
            self.optimizer.step()
            metrics = self._metrics()
            last = step + 1 == config.steps
            score = None
            if self.held_out is not None and (last or (step + 1) % config.eval_every == 0):
                batches = self.held_out.in_order(config.length, config.batch_size, HELD_OUT_WINDOWS)
                score = held_out_loss(self.model, batches, dtype)
            tokens = (step + 1) * config.batch_size * config.length
            self._note(
                Step(step + 1, loss, rate, grad_norm, tokens, time.monotonic() - start, score, metrics)
            )
            if last or interrupted or (step + 1) % config.save_every == 0:
                self._save(step + 1)
            if interrupted:
                interruption.signal = interruption.signal or signal.SIGTERM  # another process got it
                return None
        tokens = config.steps * config.batch_size * config.length
        return TrainResult(
            self.history, config.steps, tokens, time.monotonic() - start, first, self.precision
        )

    def _step(self, objective: Any, step: int, dtype: torch.dtype | None) -> tuple[float, float]:
        """Gradients of one step: (loss, norm of the gradient before clipping)."""
        config, group = self.config, self.group
        ids, targets = self.data.batch(
            step,
            batch_size=config.batch_size,
            length=config.length,
            seed=config.seed,
            rank=group.rank,
            world=group.world,
        )
        ids, targets = ids.to(self.device), targets.to(self.device)
        size = config.micro_batch or len(ids)
        parts = len(ids) // size
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in range(parts):
            rows = slice(part * size, (part + 1) * size)
            waits = group.world > 1 and part + 1 < parts
            with objective.no_sync() if waits else nullcontext():
                with autocast(self.device, dtype):
                    combined, loss = objective(ids[rows], targets[rows])
                (combined / parts if parts > 1 else combined).backward()
            total += float(loss) / parts
        parameters = self.model.parameters()
        limit = math.inf if config.clip is None else config.clip
        return total, float(torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True))

    def _begin(self, resume: bool) -> int:
        """Restore the newest checkpoint, or choose what a new run needs to choose; steps done."""
        if self.out is not None and not resume and self.group.rank == 0:
            start_over(self.out)
        checkpoint = latest(self.out) if self.out is not None and resume else None
        if checkpoint is None:
            ids, targets = self._first_batch()
            chosen = choose_precision(
                Objective(self.model, self.criterion, self.config.aux_weight), self.config, ids, targets
            )
            self.precision = self.group.from_first(chosen)
            if self.out is not None and self.group.rank == 0:
                self.out.mkdir(parents=True, exist_ok=True)
                (self.out / HISTORY).unlink(missing_ok=True)
            return 0
        state = checkpoint.state
        _same_run(state, self._settings(), str(checkpoint.path))
        if state["threads"] != torch.get_num_threads():
            warnings.warn(
                f"{checkpoint.path} was made with {state['threads']} threads, this process has "
                f"{torch.get_num_threads()}: going on with {state['threads']}, so that sums are the same",
                stacklevel=4,
            )
            torch.set_num_threads(state["threads"])
        checkpoint.restore(self.model, self.optimizer, self.criterion)
        self.precision = state["precision"]
        self._read_history(state["step"])
        return int(state["step"])

    def _first_batch(self) -> tuple[Tensor, Tensor]:
        config, group = self.config, self.group
        ids, targets = self.data.batch(
            0,
            batch_size=config.batch_size,
            length=config.length,
            seed=config.seed,
            rank=group.rank,
            world=group.world,
        )
        size = config.micro_batch or len(ids)
        return ids[:size].to(self.device), targets[:size].to(self.device)

    def _objective(self) -> Any:
        hidden = _compiled(self.model) if self.config.compile else None
        objective = Objective(self.model, self.criterion, self.config.aux_weight, hidden)
        if self.group.world == 1:
            return objective
        devices = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are the same in every process already. torch 2.13 has a new name for the argument.
        accepted = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
        options: dict[str, Any] = {"device_ids": devices, name: False}
        return DistributedDataParallel(objective, **options)

    def _metrics(self) -> dict[str, float]:
        """What the loss and the codebooks have to say about the step just made."""
        found: dict[str, float] = {}
        stats = self.criterion.last_stats
        if stats is not None and stats.count:
            found["ce"] = float(stats.ce.sum()) / stats.count
            found["accuracy"] = float(stats.correct.sum()) / stats.count
            if stats.emo is not None:
                found["emo"] = float(stats.emo.sum()) / stats.count
        if "vq" in self.model.config.layer_mixers:
            from lmlab.attention import step_codebooks

            means = [stats.mean() for stats in step_codebooks(self.model).values()]
            for key in ("alive", "relative_error"):
                found[key] = sum(float(getattr(mean, key)) for mean in means) / len(means)
        return found

    def _settings(self) -> dict[str, Any]:
        return {
            "train": self.config.to_dict(),
            "model": self.model.config.to_dict(),
            "data": self.data.sha256,
            "world": self.group.world,
        }

    def _save(self, step: int) -> None:
        if self.out is None or self.group.rank != 0:
            return
        settings = {**self._settings(), "precision": self.precision, "threads": torch.get_num_threads()}
        self.retry.call(
            save_checkpoint,
            *(self.out, step, self.model, self.optimizer, self.criterion, settings),
            keep=self.config.keep,
        )

    def _note(self, step: Step) -> None:
        self.history.append(step)
        if self.out is not None and self.group.rank == 0:
            path = self.out / HISTORY
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(step)) + "\n")
            except OSError as error:
                error.filename = str(path)  # of a write the system names no file
                raise
        if self.on_step is not None and self.group.rank == 0:
            self.on_step(step)

    def _read_history(self, done: int) -> None:
        """The steps before the checkpoint; lines after it belong to work that is done again."""
        assert self.out is not None
        path = self.out / HISTORY
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
        for number, line in enumerate(lines[:done], 1):
            try:
                self.history.append(Step(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise CheckpointError(
                    f"{path}, line {number} can't be read ({error}). Remove the file to go on without the "
                    "steps that it tells, or train(..., resume=False) to start over"
                ) from None
        if self.group.rank == 0 and len(lines) > done:
            temporary = path.with_name(f"{HISTORY}.tmp-{os.getpid()}")
            temporary.write_text("".join(f"{line}\n" for line in lines[:done]), encoding="utf-8")
            temporary.replace(path)


def _check(model: Decoder, data: TokenFile, config: TrainConfig, world: int) -> None:
    if data.vocab_size > model.config.vocab_size:
        raise ConfigError(
            "vocab_size",
            f"must be at least the token file's {data.vocab_size}, got {model.config.vocab_size}",
        )
    unit = world * (config.micro_batch or 1)
    if config.batch_size % unit:
        raise ConfigError(
            "batch_size",
            f"must be a multiple of processes x micro_batch = {world} x {config.micro_batch or 1}, "
            f"got {config.batch_size}",
        )
    data.windows(config.length)


def _same_run(state: dict[str, Any], settings: dict[str, Any], path: str) -> None:
    """CheckpointError unless a checkpoint was made by the same run, with what differs."""
    for section in ("train", "model"):
        for key, now in settings[section].items():
            then = state[section].get(key)
            if then != now and not (section == "train" and key in FREE_SETTINGS):
                raise CheckpointError(
                    f"{path} was made with {section}.{key} = {then!r}, now it is {now!r}; the same "
                    "setting goes on, train(..., resume=False) starts over"
                )
    if state["data"] != settings["data"]:
        raise CheckpointError(f"{path} was made from other tokens; train(..., resume=False) starts over")
    if state["world"] != settings["world"]:
        warnings.warn(
            f"{path} was made by {state['world']} processes, now there are {settings['world']}: the "
            "weights will agree up to rounding, not bit for bit",
            stacklevel=5,
        )


def _compiled(model: Decoder) -> Callable[[Tensor], Any]:
    """torch.compile(model.hidden), or the plain method with one warning where that fails."""
    compiled = torch.compile(model.hidden)
    failed = False

    def hidden(ids: Tensor) -> Any:
        nonlocal failed
        if failed:
            return model.hidden(ids)
        try:
            return compiled(ids)
        except Exception as error:
            failed = True
            warnings.warn(f"torch.compile failed ({type(error).__name__}), running without it", stacklevel=2)
            return model.hidden(ids)

    return hidden


@contextmanager
def _threads_kept() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
