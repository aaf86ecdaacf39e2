"""A study in a process of its own, killed at a random moment, and what must be true of its files afterwards.

`python kills.py OUT WORKERS BACKEND FITS` runs the study; it says "ready" before the first job and then its
digest. Each generation that is begun adds a byte to the file FITS.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from lmlab.autophagy import Accumulate, History, Memory, NGram, run

POOL = np.random.default_rng(3).integers(0, 30, (1200, 24))
SEEDS = 2


class Counted(NGram):
    """Writes one byte to a file when it begins a generation. The class, not an object, knows which: a run's
    settings don't hold it, and a worker is sent the class with it."""

    fits = None

    def fit(self, data, weights, rng):
        if self.fits is not None:
            with Path(self.fits).open("ab") as file:
                file.write(b".")
        return super().fit(data, weights, rng)


def study(out=None, workers=1, backend="loky"):
    return run(
        Memory(Accumulate(100), 2), Counted(30), POOL[:1000], generations=8, seeds=SEEDS, bias=0.9,
        metrics=("bits_per_byte", "entropy_1"), held_out=POOL[1000:].copy(), out=out, workers=workers, backend=backend,
    )  # fmt: skip


class Study:
    """A study in a process of its own, in the directory `out`."""

    def __init__(self, out, workers, backend):
        self.out, self.workers = out, workers
        self.fits = Path(
            tempfile.mkstemp(dir=Path(out).parent)[1]
        )  # workers of an earlier one may live on a little
        self.before = self.files()
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(out), str(workers), backend, str(self.fits)],
            stdout=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"JOBLIB_TEMP_FOLDER": str(Path(out).parent)},
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"
        self.begin = time.perf_counter()

    def files(self):
        return len(list(Path(self.out).glob("seed-*/gen-*.npz")))

    def end(self):
        """Its digest, and the seconds from its first job on."""
        rest = self.process.communicate()[0]
        assert self.process.returncode == 0
        return rest.split()[-1], time.perf_counter() - self.begin

    def kill(self, seconds, whole, workers_too):
        """SIGKILL after `seconds`; whether the study was still at work. `whole`: the uninterrupted one."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            send = os.killpg if workers_too else os.kill
            send(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        begun = len(self.fits.read_bytes())  # read before the files are counted
        made = self.files() - self.before
        assert begun <= made + min(self.workers, SEEDS), "more than the generation at work was lost"
        if (Path(self.out) / "run.json").exists():
            left = History.read(self.out)
            length = left.values.shape[1]
            same = [whole.seeds.index(seed) for seed in left.seeds]
            assert (left.values == whole.values[same, :length]).all()
            assert (left.origin == whole.origin[same, :length, :length]).all()
        return self.process.returncode == -signal.SIGKILL

    def bury(self):
        """End the workers that outlived their program: one may wait for ever for a lock of a dead sibling."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def campaign(folder, kills, workers, backend, seed=0):
    """Kill studies until `kills` have hit; each study is resumed until it is whole, with the same digest."""
    whole = study()
    digest, seconds = Study(folder / "whole", workers, backend).end()
    assert digest == whole.digest
    rng = np.random.default_rng(seed)
    hits = resumed = 0
    while hits < kills:
        out = folder / str(resumed)
        killed = []
        while hits < kills:
            killed.append(Study(out, workers, backend))
            if not killed[-1].kill(rng.uniform(0, seconds), whole, hits % 2 == 0):
                break
            hits += 1
        found = study(out)
        for one in killed:
            one.bury()
        assert found.digest == whole.digest
        assert (found.values == whole.values).all() and (found.origin == whole.origin).all()
        resumed += 1
    return hits, resumed


if __name__ == "__main__":
    out, workers, backend, Counted.fits = sys.argv[1:]
    print("ready", flush=True)
    print(study(out, int(workers), backend).digest)
