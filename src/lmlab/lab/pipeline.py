"""From raw text to a report: the stages in their order, for every variant and seed of a recipe.

    corpus -> tokenize -> train -> evaluate -> generate -> compare -> autophagy -> report

Each stage reads what the ones before it left in their directories, and nothing else.
"""

from __future__ import annotations

import importlib
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from lmlab.lab.checks import check
from lmlab.lab.collect import collect, stage_list
from lmlab.lab.journal import Journal
from lmlab.lab.patience import patience
from lmlab.lab.processes import spread
from lmlab.lab.progress import Display, clock
from lmlab.lab.recipe import Recipe
from lmlab.lab.relay import Relay, followed
from lmlab.lab.stages import Done, Stage, clear_temporaries, drop, find, lock, perform, write_json
from lmlab.lab.steps.job import Job
from lmlab.model.errors import ConfigError
from lmlab.retry import Retry, atomic_write

STAGES = (
    "corpus",  # raw text: documents, some of them held out
    "tokenize",  # a tokenizer, and both splits as ids
    "train",  # the decoder
    "evaluate",  # bits per byte, loss against length
    "generate",  # samples
    "compare",  # one checkpoint, fine-tuned with every loss
    "autophagy",  # the model fed on its own output
)
# What a stage that was killed leaves for the next run, inside its directory.
SCRATCH = {"train": "checkpoints", "compare": "second", "autophagy": "loops"}
EVENTS = "tensorboard"
PROGRESS = ".progress.tmp"  # what processes report while they work
OPTIONAL = ("compare", "autophagy")  # absent without their table
Arm = tuple[str, int]  # variant, seed


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, what metrics.json says, and the report's path (None if it was not made)."""

    path: Path
    metrics: dict[str, Any]
    report: Path | None


@dataclass(frozen=True)
class _Task:
    """One stage of one arm, ready to be done here or in another process."""

    run: Path
    stage: Stage
    recipe: Recipe
    inputs: Mapping[str, Path]
    label: str
    workers: int = 1


def run(
    recipe: Recipe,
    out: Path | None = None,
    *,
    quiet: bool = False,
    jobs: int = 1,
    wait: bool = True,
    only: Sequence[str] = (*STAGES, "report"),
    command: str | None = None,
    tensorboard: bool = False,
) -> Run:
    """Run `recipe` in the directory `out` (`runs/NAME`); stages that are done already are not done again.

    jobs: stages of different variants and seeds at once, in processes. wait: False raises Busy where another
    run holds the directory. only: the stages wanted, of STAGES and "report", with those that they read from.
    command: how to repeat the run, for the report. tensorboard: training also writes scalars below
    OUT/tensorboard (and goes on doing so in later calls, while that folder is there).
    Raises ConfigError, CorpusError, TrainingError, Busy; OSError where the disk is full.
    """
    if tensorboard and find_spec("tensorboard") is None:
        raise ConfigError("tensorboard", "needs TensorBoard: pip install 'lmlab[track]'")
    out = _checked(Path("runs") / recipe.name if out is None else Path(out))
    if jobs < 1:
        raise ConfigError("jobs", f"must be a whole number >= 1, got {jobs}")
    if unknown := set(only) - {*STAGES, "report"}:
        raise ConfigError("only", f"takes {', '.join((*STAGES, 'report'))}; got {', '.join(sorted(unknown))}")
    recipes = {(variant, seed): arm for variant, seed, arm in recipe.arms()}
    for arm in recipes.values():
        check(arm, only)
    jobs = max(jobs, recipe.retry.workers or 1)
    start = perf_counter()
    with Display(quiet=quiet) as display, lock(out, wait=wait, say=display.say):
        clear_temporaries(out, ".*.tmp")
        for folder in ("stages", "models", "figures"):
            clear_temporaries(out / folder)
        journal = Journal(out / "log.jsonl")
        journal.mend()
        journal.write(None, "start", name=recipe.name)
        if tensorboard:
            (out / EVENTS).mkdir(exist_ok=True)
        done: dict[Arm, dict[str, Done]] = {arm: {} for arm in recipes}
        with patience(recipe.retry, journal, None) as retry:
            retry.call(_write_recipe, out, recipe)
            retry.call(write_json, out / "versions.json", versions(command))
            for name in [name for name in STAGES if name in only]:
                _stage(name, recipes, done, out, display, journal, jobs, retry)
                retry.call(
                    write_json, out / "stages.json", stage_list(done)
                )  # half a run can be reported too
            metrics = retry.call(collect, out, recipe, recipes, done)
        report = _report(out, display, journal) if "report" in only else None
        seconds = perf_counter() - start
        journal.write(None, "end", seconds=round(seconds, 3))
        display.say(f"done in {clock(seconds)}")
    return Run(out, metrics, report)


def _stage(
    name: str,
    recipes: Mapping[Arm, Recipe],
    done: dict[Arm, dict[str, Done]],
    out: Path,
    display: Display,
    journal: Journal,
    jobs: int,
    retry: Retry,
) -> None:
    """Do one stage for every arm. Arms whose keys agree share one directory and one piece of work."""
    module = _module(name)
    tasks: dict[str, _Task] = {}
    keys: dict[Arm, str] = {}
    for (variant, seed), recipe in recipes.items():
        if name in OPTIONAL and getattr(recipe, name) is None:
            continue
        before = {i: done[variant, seed][i] for i in module.INPUTS}
        settings, files = module.settings(recipe)
        inputs = [d.stage.key for d in before.values()]
        stage = Stage(name, settings, inputs, files, module.VERSION, variant, seed)
        several = len(recipes) > 1 and name not in ("corpus",)
        label = f"{name} {variant}{f' seed {seed}' if recipe.seeds > 1 else ''}" if several else name
        paths = {i: d.path for i, d in before.items()}
        tasks.setdefault(stage.key, _Task(out, stage, recipe, paths, label))
        keys[variant, seed] = stage.key
    ready = {key: d for key, task in tasks.items() if (d := find(out, task.stage))}
    for key, finished in ready.items():
        drop(finished, SCRATCH.get(name))
        journal.write(name, "reused", directory=finished.path.name)
        display.say(f"{tasks[key].label}: done before")
    for finished in _do([t for key, t in tasks.items() if key not in ready], display, jobs, retry):
        ready[finished.stage.key] = finished
        journal.write(name, "done", directory=finished.path.name, seconds=round(finished.seconds, 3))
    for arm, key in keys.items():
        done[arm][name] = ready[key]


def _do(tasks: list[_Task], display: Display, jobs: int, retry: Retry) -> Iterator[Done]:
    """The tasks one after another, or each in a process of its own. A process that dies (the system ends one
    when memory is short) costs its task another go, from its last checkpoint."""
    if jobs == 1 or len(tasks) < 2:
        yield from (_perform(replace(task, workers=jobs), display) for task in tasks)
        return
    name, kills, told = tasks[0].stage.name, tasks[0].recipe.retry.kills, tasks[0].run / PROGRESS
    with display.work(f"{name}, all", len(tasks)) as advance, followed(told, display):
        for n, one in enumerate(spread(_elsewhere, tasks, jobs, retry, kills), 1):
            advance(n)
            yield one


def _elsewhere(task: _Task) -> Done:
    """In a process of its own: the log is shared, and the first process shows how far it is."""
    return _perform(task, Relay(task.run / PROGRESS))


def _perform(task: _Task, display: Display) -> Done:
    stage = task.stage
    journal = Journal(task.run / "log.jsonl", variant=stage.variant, seed=stage.seed)
    journal.write(stage.name, "begin")

    with patience(task.recipe.retry, journal, stage.name) as retry:

        def work(directory: Path) -> dict[str, Any]:
            job = Job(
                *(task.recipe, task.inputs, directory, journal, display, stage.name, task.label),
                retry=retry,
                workers=task.workers,
                tensorboard=_events(task),
            )
            result: dict[str, Any] = _module(stage.name).work(job)
            return result

        return perform(task.run, stage, work, scratch=SCRATCH.get(stage.name), retry=retry)


def _events(task: _Task) -> Path | None:
    """Where this arm's scalars go, if the run has a folder for them."""
    folder = task.run / EVENTS
    name = task.stage.variant or "base"
    return folder / f"{name}.{task.stage.seed}" if folder.is_dir() else None


def _write_recipe(out: Path, recipe: Recipe) -> None:
    with atomic_write(out / "recipe.toml", "w", encoding="utf-8") as file:
        file.write(recipe.to_toml())


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"lmlab.lab.steps.{name}")


def _report(out: Path, display: Display, journal: Journal) -> Path:
    from lmlab.lab.report import write_report

    start = perf_counter()
    with display.work("report"):
        path = write_report(out)
    journal.write("report", "done", seconds=round(perf_counter() - start, 3))
    return path


def _checked(out: Path) -> Path:
    """A directory for the run: no way up, no NUL."""
    if "\0" in str(out) or ".." in out.parts:
        raise ConfigError("out", f"must be a directory without '..' or NUL, got {str(out)!r}")
    if out.exists() and not out.is_dir():
        raise ConfigError("out", f"must be a directory, and {out} is a file")
    return out


def versions(command: str | None = None) -> dict[str, Any]:
    """What the run was made with."""
    import numpy
    import torch

    import lmlab

    return {
        "python": platform.python_version(),
        "lmlab": lmlab.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "command": command or shlex.join(["python", *sys.argv]),
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
