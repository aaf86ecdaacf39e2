"""The benchmark and the scripts behind the findings of this room run from end to end on small sizes."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from lmlab.lab.bench import Row, run_part

FINDINGS = Path(__file__).parents[2] / "findings"


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FINDINGS / f"{name}.py"))


def test_the_benchmark_runs() -> None:
    rows = run_part("rope", quick=True)
    assert all(isinstance(row, Row) and row.ours is not None for row in rows)
    assert {row.target for row in rows} >= {"<= 1.25", "<= 1.12", "<= 1.20", ">= 8", "<= 64", "<= 1e-13"}
    exact = next(row for row in rows if row.target == "<= 1e-13")
    assert exact.reached


def test_rerope_as_three_attentions(capsys: pytest.CaptureFixture[str]) -> None:
    script("rerope_three_attentions")["main"](quick=True)
    said = capsys.readouterr().out
    forward, backward = (
        float(said.split(f"{word} ")[1].split()[0].strip(",")) for word in ("forward", "(relative)")
    )
    assert forward < 1e-13
    assert backward < 1e-12
    assert "| 256 | 32 | 1.000 |" in said
