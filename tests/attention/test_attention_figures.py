"""The benchmark runs from end to end on small sizes, and the page on the scale says what its script prints."""

import re
import runpy
from pathlib import Path

import pytest

from lmlab.lab.bench import run_part

ROOT = Path(__file__).parents[2]


def test_the_benchmark_runs() -> None:
    rows = run_part("attention", quick=True)
    assert all(row.ours is not None or row.ratio is not None for row in rows)
    names = {row.what.split(",")[0] for row in rows}
    assert names >= {"forward", "forward and backward", "break-even with SDPA", "extra peak memory"}
    assert sum("growth exponent" in row.what for row in rows) == 1


def test_every_number_of_the_tables_on_the_scale_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for part in runpy.run_path(str(ROOT / "findings" / "attention_scale.py"))["PARTS"]:
        part()
    printed = set(re.findall(r"-?[\d,.]*\d", capsys.readouterr().out))
    page = (ROOT / "docs" / "findings" / "attention-scale.md").read_text(encoding="utf-8")
    page, _ = page.split("## What training says")  # a recipe's numbers, not the script's
    table_rows = [line for line in page.splitlines() if line.startswith("| ") and "n |" not in line]
    numbers = {
        number.replace("−", "-")
        for line in table_rows
        for number in re.findall(r"−?[\d,.]*\d", line.replace("¹", ""))
    }
    counts = {f"{n:,}" for n in (1024, 4096, 16384, 131072)}
    assert len(numbers) > 60
    assert numbers - printed - counts == set()
