"""Stage 3: the decoder, trained. A run that was killed goes on from its last checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.lab.progress import Advance
from lmlab.lab.recipe import Recipe
from lmlab.lab.sources import CorpusError
from lmlab.lab.stages import file_sha256
from lmlab.lab.steps.job import Job
from lmlab.model.errors import ConfigError
from lmlab.model.fields import to_plain

if TYPE_CHECKING:
    from lmlab.train import Step, TrainConfig

VERSION = 1
INPUTS = ("tokenize",)


def settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    model = to_plain(recipe.model)
    del model["vocab_size"]  # the tokenizer's, and its stage is an input
    train = to_plain(recipe.train)
    del train["loss"]["cost"]["path"], train["save_every"], train["keep"]  # they change no number
    cost = _cost_file(recipe)
    files = [] if cost is None else [file_sha256(cost)]
    return {"model": model, "train": train, "seed": recipe.seed}, files


def _cost_file(recipe: Recipe) -> Path | None:
    if recipe.loss.cost.path is None:
        return None
    found = recipe.folder / Path(recipe.loss.cost.path).expanduser()
    if not found.is_file():
        raise ConfigError("loss.cost.path", f"names no file: {found}")
    return found


def _config(recipe: Recipe) -> TrainConfig:
    """[train], with the path of a cost relative to the recipe made whole."""
    path = _cost_file(recipe)
    if path is None:
        return recipe.train
    cost = dataclasses.replace(recipe.loss.cost, path=str(path))
    return dataclasses.replace(recipe.train, loss=dataclasses.replace(recipe.loss, cost=cost))


def check_size(recipe: Recipe, tokens: int, held_out: int, directory: Path) -> None:
    """CorpusError unless the train split has two windows and the held-out split a token to predict."""
    needed = 2 * (recipe.train.length + 1)
    if tokens < needed:
        told = json.loads((directory / "stage.json").read_text(encoding="utf-8"))["result"]
        width = told["bytes_per_token"]["train"]
        raise CorpusError(
            f"the corpus is too small: training needs two windows of {recipe.train.length} tokens, that is "
            f"{needed} tokens or about {round(needed * width)} bytes in the train split, and found {tokens} "
            f"tokens or about {round(tokens * width)} bytes. Give more text, or a smaller train.length"
        )
    if held_out < 2:
        raise CorpusError("the held-out split is empty; raise corpus.held_out")


def work(job: Job) -> dict[str, Any]:
    from lmlab.model import Decoder
    from lmlab.train import TokenFile, train, weights_sha256

    recipe, tokens = job.recipe, job.inputs["tokenize"]
    data, held_out = TokenFile.open(tokens / "train.tok"), TokenFile.open(tokens / "held_out.tok")
    check_size(recipe, len(data), len(held_out), tokens)
    model = Decoder(dataclasses.replace(recipe.model, vocab_size=data.vocab_size), seed=recipe.seed)
    checkpoints = job.out / "checkpoints"
    with job.display.work(job.label, recipe.train.steps) as advance, job.warnings_to_log():
        result = train(
            model,
            data,
            _config(recipe),
            out=checkpoints,
            held_out=held_out if len(held_out) >= 2 * recipe.train.length else None,
            on_step=_recorder(job, advance),
            retry=job.retry,
        )
    if result.resumed_at == result.steps:  # no step was left that could have told it
        job.journal.write("train", "resume", step=result.resumed_at)
    model.save(job.out / "model")
    fresh = (result.steps - result.resumed_at) * recipe.train.batch_size * recipe.train.length
    steps = result.history
    return {
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "tokens_per_second": fresh / result.seconds if fresh and result.seconds else None,
        "train_loss": _tail_mean([step.loss for step in steps]),
        "held_out_loss": next((s.held_out for s in reversed(steps) if s.held_out is not None), None),
        "weights_sha256": weights_sha256(model),
        "parameters": model.num_parameters(),
        "precision": result.precision,
        "resumed_at": result.resumed_at,
        "history": [_row(step) for step in steps],
    }


def _recorder(job: Job, advance: Advance) -> Callable[[Step], None]:
    """Each step becomes a line of the log and moves the bar; the first one tells where a resumed run began."""
    from lmlab.train import tensorboard

    per_step = job.recipe.train.batch_size * job.recipe.train.length
    first: list[int] = []
    track = None if job.tensorboard is None else tensorboard(job.tensorboard)

    def on_step(step: Step) -> None:
        if not first:
            first.append(step.step - 1)
            if step.step > 1:
                job.journal.write("train", "resume", step=step.step - 1)
        job.journal.write("train", "step", **_row(step))
        if track is not None:
            track(step)
        rate = (step.step - first[0]) * per_step / max(step.seconds, 1e-9)
        advance(step.step, f"loss {step.loss:.3f}  {rate:,.0f} tokens/s")

    return on_step


def _row(step: Step) -> dict[str, Any]:
    row = {
        "step": step.step,
        "tokens": step.tokens,
        "loss": step.loss,
        "lr": step.lr,
        "grad_norm": step.grad_norm,
        "held_out": step.held_out,
    }
    return row | dict(step.metrics)


def _tail_mean(values: list[float], n: int = 20) -> float | None:
    """The mean of the last values: one step's loss is noise."""
    last = values[-n:]
    return sum(last) / len(last) if last else None
