"""The resident size of a process that does everything over and over holds still."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from campaign.conftest import Tally

SECONDS = float(os.environ.get("LMLAB_CAMPAIGN_SECONDS", "60"))
LEAK = 20.0  # KiB a round above which something isn't given back: a page or two a round are the allocator's


def held(seconds: float) -> dict[str, float]:
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("memory.py")), "--seconds", str(seconds)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the resident size is read from /proc")


@pytest.mark.campaign
@pytest.mark.timeout(2 * SECONDS + 600)
def test_memory_is_held(tally: Tally) -> None:
    found = held(SECONDS)
    slope = found["slope_KiB_per_round"]
    told = f"{slope:+.1f} KiB a round, {found['slope_MiB_per_hour']:+.0f} MiB an hour"
    tally("rounds of encode, train, generate, extend and restore", {f"rounds: {told}": int(found["rounds"])})
    assert slope < LEAK, found
