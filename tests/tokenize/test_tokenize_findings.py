"""The script of docs/findings/huggingface-sampler.md runs, and tells the laws apart."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "findings" / "huggingface_sampler.py"


@pytest.mark.peer
def test_the_script_tells_the_laws_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--quick"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    tables = capsys.readouterr().out.strip().split("\n\n")
    found = {table.split("\n")[0].split(",")[0].split(" ")[0]: table.split("\n")[2:] for table in tables[1:]}
    deviations = {name: [[float(w) for w in row.split()] for row in rows] for name, rows in found.items()}
    for row in deviations["tokenizers"][:2]:
        assert row[2] > 3 and abs(row[4]) < 8
    for name in {"sentencepiece"} & deviations.keys():
        assert all(abs(row[2]) < 8 for row in deviations[name])
