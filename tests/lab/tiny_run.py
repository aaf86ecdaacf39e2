"""A run of all stages that takes a second or two, for the tests."""

import json
import random
from pathlib import Path
from typing import Any

TINY = """
name = "tiny"

[corpus]
path = "text.txt"
held_out = 0.1

[tokenize]
vocab_size = 300

[model]
d_model = 16
n_layers = 1
n_heads = 2
d_ff = 32

[train]
steps = 8
batch_size = 2
length = 16
save_every = 2
eval_every = 4
precision = "float32"

[evaluate]
max_bytes = 400

[evaluate.length]
last = 8
extensions = [{ method = "ntkaware" }]
passkey = { trials = 1, depths = [0.5], key = 2 }

[generate]
samples = 2
max_new_tokens = 8

[autophagy]
generator = "ngram"
loops = ["synthetic"]
generations = 2
seeds = 1
bias = [1.0]
n_real = 40
n_synth = 40
row_length = 16
metrics = ["bits_per_byte", "distinct_2"]
"""
WORDS = "light water earth heaven night day 春 花 月 江 山 the of and".split()


def write_tiny(folder: Path, *, extra: str = "", documents: int = 100) -> Path:
    """A recipe and its text in `folder`; the recipe's path."""
    draw = random.Random(5)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(8, 30))) for _ in range(documents)]
    (folder / "text.txt").write_text("\n\n\n".join(texts), encoding="utf-8")
    path = folder / "tiny.toml"
    path.write_text(TINY + extra, encoding="utf-8")
    return path


TIMES = ("seconds", "tokens_per_second", "resumed_at", "reused", "time")


def without_times(value: Any) -> Any:
    """A tree of plain values without what depends on the clock."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def metrics_of(run: Path) -> Any:
    return without_times(json.loads((run / "metrics.json").read_text(encoding="utf-8")))


EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"}


def run_and_die(recipe: str, out: str, kill_at: int, kill_step: int, answer: Any) -> None:
    """In a process of its own: run, and be killed by SIGKILL just before the `kill_at`-th call that touches a
    file of the run, or when the training has logged step `kill_step` (0: never). Sends how many calls there
    were."""
    import os
    import signal
    import sys

    import torch

    from lmlab.lab import load_recipe, run
    from lmlab.lab.journal import Journal

    calls = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls
        if event in EVENTS and str(arguments[0]).startswith(out):
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    write = Journal.write

    def told(self: Journal, stage: str | None, event: str, **fields: Any) -> None:
        write(self, stage, event, **fields)
        if event == "step" and fields["step"] == kill_step:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.write = told  # type: ignore[method-assign]
    torch.set_num_threads(1)
    sys.addaudithook(watch)
    run(load_recipe(recipe), Path(out), quiet=True)
    answer.send(calls)
