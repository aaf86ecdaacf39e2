"""One piece of work, disturbed again and again: in a child for each time, then once more in peace.

    LD_PRELOAD=fault.so python driver.py WORK HOW [--count N] [--seed N] --home DIRECTORY

WORK: checkpoint, table, stage, run. HOW: once (one call fails), full (all from it on, a full disk), kill (dies at
it), clock (SIGKILL at a random moment), size (no file may be longer than so many bytes). Prints JSON: how many
calls there are that change a file, the cases, what they ended in, and what went wrong.
"""

import argparse
import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import lmlab.evaluate
import lmlab.lab.pipeline
import lmlab.lab.report
import lmlab.model
import lmlab.train
from lab.synthetic_run import write_run
from lab.tiny_run import metrics_of, write_tiny
from lmlab.lab import load_recipe
from lmlab.lab.cli import main
from lmlab.model import Decoder, DecoderConfig
from lmlab.train import TokenFile, TrainConfig, train, weights_sha256

MODES = {"once": 1, "full": 2, "kill": 3}
SAME, ERROR, KILLED = "the same bits", "one clear error, then the same bits", "killed, then the same bits"
PATIENCE = 240  # seconds that one child may take


def checkpoint(home: Path, out: Path) -> str:
    """Train with a checkpoint at every step."""
    data = TokenFile.open(home / "data.tok")
    model = Decoder(DecoderConfig(vocab_size=50, d_model=16, n_layers=1, n_heads=2), seed=1)
    config = TrainConfig(steps=4, batch_size=2, length=8, save_every=1, keep=2, precision="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged checkpoint is told, and the one before taken
        train(model, data, config, out=out)
    return weights_sha256(model)


def table(home: Path, out: Path) -> str:
    """Write the report and the CSV of its figures."""
    files = lmlab.lab.report.write_report(out).parent
    return digest([files / "report.html", *sorted((files / "figures").iterdir())])


def stage(home: Path, out: Path) -> str:
    """The first three stages of a run, by the command."""
    return _lab(home, out, ["train", str(home / "tiny.toml")])


def run(home: Path, out: Path) -> str:
    """A whole run, by the command."""
    return _lab(home, out, ["run", str(home / "tiny.toml")])


def _lab(home: Path, out: Path, words: list[str]) -> str:
    status = main([*words, "--out", str(out), "--quiet"])
    if status:
        sys.stderr.flush()
        os._exit(status)
    files = sorted(p for p in (out / "models").rglob("*") if p.is_file())
    samples = [out / "samples.jsonl"] if words[0] == "run" else []
    left = [p.name for p in out.rglob(".tmp-*")]
    return json.dumps([digest([*files, *samples]), metrics_of(out), left], sort_keys=True)


def digest(files: list[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        data = file.read_bytes()
        if file.name == "tokenizer.json":  # it tells the time and memory that its training took
            data = json.dumps({k: v for k, v in json.loads(data).items() if k != "training"}).encode()
        found.update(file.name.encode() + b"\0" + hashlib.sha256(data).digest())
    return found.hexdigest()


WORK: dict[str, Callable[[Path, Path], str]] = {
    "checkpoint": checkpoint,
    "table": table,
    "stage": stage,
    "run": run,
}


def prepare(work: str, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    if work == "checkpoint":
        draw = random.Random(3)
        rows = [[draw.randrange(1, 50) for _ in range(30)] for _ in range(20)]
        TokenFile.write(home / "data.tok", rows, vocab_size=50, end_id=0)
    elif work == "table":
        write_run(home / "synthetic", stages=("corpus", "tokenize", "evaluate"), length=False)
    else:
        write_tiny(home)
        load_recipe(home / "tiny.toml")


class Bench:
    def __init__(self, work: str, home: Path) -> None:
        self.work, self.home = WORK[work], home
        self.out = home / "out"
        self.fault = ctypes.CDLL(None)

    def child(self, before: Callable[[], None], after: float | None = None) -> tuple[int, str, str, int]:
        """Do the work in a child: its wait status, result, what it said, calls. after: seconds until SIGKILL."""
        said, answer = self.home / "said", self.home / "answer"
        said.write_bytes(b"")
        answer.write_bytes(b"")
        pid = os.fork()
        if not pid:
            status = 70
            try:
                where = os.open(said, os.O_WRONLY)
                os.dup2(where, 1)
                os.dup2(where, 2)
                before()
                told = self.work(self.home, self.out)
                self.fault.fault_seen.restype = ctypes.c_long
                answer.write_text(json.dumps([told, self.fault.fault_seen()]))
                status = 0
            except OSError as error:
                print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
                status = 1
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        start = time.monotonic()
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            now = time.monotonic() - start
            if done:
                break
            if (after is not None and now >= after) or now > PATIENCE:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                break
            time.sleep(0.004)
        text = answer.read_text()
        told, calls = json.loads(text) if text else ("", 0)
        return status, told, said.read_text(errors="replace"), calls

    def arm(self, number: int, mode: int, code: int = errno.ENOSPC) -> Callable[[], None]:
        return lambda: self.fault.fault_arm(str(self.out).encode(), ctypes.c_long(number), code, mode)

    def clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        if (self.home / "synthetic").exists():
            shutil.copytree(self.home / "synthetic", self.out)

    def case(
        self, name: str, before: Callable[[], None], whole: str, after: float | None = None
    ) -> tuple[str, str]:
        """(what it ended in, what was wrong or "")."""
        self.clear()
        status, told, said, _ = self.child(before, after)
        if os.WIFSIGNALED(status):
            ended = KILLED
        elif os.WEXITSTATUS(status) == 0:
            return (SAME, "") if told == whole else ("other bits", f"{name}: done, with other bits")
        else:
            ended = ERROR
            lines = said.strip().splitlines()
            if len(lines) != 1 or not lines[0].startswith("error: ") or "/" not in lines[0]:
                return "no clear error", f"{name}: {said[-1500:]}"
        status, told, said, _ = self.child(self.arm(0, 0))
        if status:
            return "not mended", f"{name}: then {said[-1500:]}"
        return (
            (ended, "")
            if told == whole
            else ("other bits", f"{name}: {ended}: {told[:300]} for {whole[:300]}")
        )


def limit(size: int) -> Callable[[], None]:
    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return before


def main_(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    home = Path(arguments.home).resolve()
    prepare(arguments.work, home)
    bench = Bench(arguments.work, home)
    bench.clear()
    with contextlib.redirect_stdout(io.StringIO()):
        bench.work(home, bench.out)  # so that the children have all modules in memory
    bench.clear()
    start = time.monotonic()
    status, whole, said, calls = bench.child(bench.arm(0, 0))
    took = time.monotonic() - start
    assert status == 0 and calls > 0, f"undisturbed it fails: {status} {said}"
    draw = random.Random(arguments.seed)
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    numbers: list[Any] = list(range(1, calls + 1))
    if arguments.how == "clock":
        numbers = [draw.uniform(0, took) for _ in range(arguments.count)]
    elif arguments.how == "size":
        numbers = [round(10 ** draw.uniform(1, 6)) for _ in range(arguments.count)]
    elif 0 < arguments.count < calls:
        numbers = sorted(draw.sample(numbers, arguments.count))
    for number in numbers:
        if arguments.how == "clock":
            ended, wrong = bench.case(f"killed after {number:.3f} s", bench.arm(0, 0), whole, number)
        elif arguments.how == "size":
            ended, wrong = bench.case(f"files up to {number} bytes", limit(number), whole)
        else:
            code = draw.choice([errno.ENOSPC, errno.EIO]) if arguments.how == "once" else errno.ENOSPC
            ended, wrong = bench.case(f"call {number}", bench.arm(number, MODES[arguments.how], code), whole)
        outcomes[ended] += 1
        bad += [wrong] if wrong else []
    return {"calls": calls, "cases": len(numbers), "outcomes": dict(outcomes), "bad": bad[:20]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORK)
    parser.add_argument("how", choices=[*MODES, "clock", "size"])
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", required=True)
    print(json.dumps(main_(parser.parse_args())))
