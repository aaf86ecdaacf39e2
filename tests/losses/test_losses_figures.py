"""The benchmark and the script behind the finding of this room run from end to end on small sizes."""

import math
import runpy
from pathlib import Path

import pytest

from lmlab.lab.bench import run_part

FINDINGS = Path(__file__).parents[2] / "findings"


def test_the_benchmark_runs() -> None:
    rows = run_part("losses", quick=True)
    names = {row.what.split(",")[0] for row in rows}
    assert names >= {"CE", "CE + EMO", "frozen head", 'reduction="none"'}
    assert sum("memory" in row.what for row in rows) == 1
    assert sum("tokens of text" in row.what for row in rows) == 2
    assert all(row.ours is not None and math.isfinite(row.ours) and row.ours > 0 for row in rows)


def test_the_gauge_of_emo(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FINDINGS / "emo_gauge.py"))["main"](quick=True)
    raw, centred = capsys.readouterr().out.split("EMO moves by at most ")[1:]
    assert float(raw.split()[0]) > 0.1
    assert float(centred.split()[0]) < 1e-12
