"""Kills, failing writes and full disks: the driver disturbs a piece of work in children, again and again."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from campaign.conftest import Tally

HERE = Path(__file__).parent
FAST = Path("/dev/shm")  # the order of calls is what counts, not the speed of the disk
COMPILER = next((c for c in (os.environ.get("CXX"), "cc", "gcc", "clang") if c and shutil.which(c)), None)
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None,
    reason="faults are made by a preloaded library: Linux, a C compiler",
)

WORK = {
    "checkpoint": "a training that saves at every step",
    "table": "the report and the tables of its figures",
    "stage": "`lmlab train`: corpus, tokenizer, model",
    "run": "`lmlab run`, tiny recipe",
}
HOW = {
    "once": "one call fails ({})",
    "full": "the disk is full from one call on ({})",
    "kill": "SIGKILL at one call, half a write done ({})",
    "clock": "SIGKILL at a random moment ({})",
    "size": "no file may grow beyond a random size ({})",
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fault") / "fault.so"
    assert COMPILER is not None
    command = [
        COMPILER,
        "-x",
        "c",
        "-O1",
        "-shared",
        "-fPIC",
        "-o",
        str(target),
        str(HERE / "fault.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return target


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=FAST if os.access(FAST, os.W_OK) else None) as folder:
        yield Path(folder)


def disturb(library: Path, home: Path, work: str, how: str, count: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "driver.py"), work, how, "--count", str(count), "--home", str(home)],
        env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("work", "how", "count"),
    [
        ("checkpoint", "once", 2),
        ("table", "full", 2),
        ("stage", "once", 2),
        ("stage", "size", 1),
        ("run", "clock", 1),
    ],
)
def test_some_faults(library: Path, home: Path, work: str, how: str, count: int) -> None:
    found = disturb(library, home, work, how, count)
    assert found["bad"] == [] and found["cases"] == count


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("work", "how", "count"),
    [
        ("table", "once", 0),
        ("table", "full", 0),
        ("checkpoint", "once", 0),
        ("checkpoint", "full", 0),
        ("run", "clock", 100),
        ("stage", "once", 0),
        ("stage", "full", 0),
        ("stage", "size", 40),
        ("run", "kill", 100),
        ("run", "full", 60),
    ],
)
def test_every_fault(library: Path, home: Path, tally: Tally, work: str, how: str, count: int) -> None:
    most = int(os.environ.get("LMLAB_CAMPAIGN_CASES", "0"))  # for a machine that is short of time
    found = disturb(library, home, work, how, min(count or most, most or count))
    calls, done = found["calls"], found["cases"]
    cases = (
        f"each of {calls}"
        if done == calls
        else f"{done} of {calls}"
        if how in ("once", "full", "kill")
        else done
    )
    tally(
        f"{WORK[work]}: {HOW[how].format(cases)}",
        found["outcomes"],
    )
    assert found["bad"] == []
