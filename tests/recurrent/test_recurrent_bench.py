"""The benchmark and the script behind the figures of the documentation run from end to end on small sizes."""

import csv
import io
import math
from pathlib import Path

import lmlab.benchmarks.recurrent_convergence as figures
import pytest
import torch
from rich.console import Console

from lmlab.lab.bench import run_part


def test_every_row_of_the_benchmark_comes() -> None:
    threads = torch.get_num_threads()
    rows = run_part("recurrent", quick=True, console=Console(file=io.StringIO(), width=200))
    what = [row.what for row in rows]
    for name, count in (
        ("GRU forward, batch", 3),
        ("GRU forward + backward, batch", 5),
        ("RNN forward + backward, batch", 5),
        ("LSTM forward + backward, batch", 5),
        ("DiagonalGRU", 1),
        ("one-channel diagonal tanh", 1),
        ("linear_scan forward (", 2),
        ("linear_scan forward + backward", 2),
        ("dense scan", 1),
        ("shooting on", 2),
        ("chaotic cell", 1),
        ("Newton sweeps", 1),
    ):
        assert sum(w.startswith(name) for w in what) == count, name
    assert sum("two threads" in w for w in what) == 6
    for row in rows:
        assert row.target and row.ours is not None and math.isfinite(row.ours) and row.ours > 0, row.what
    assert next(row for row in rows if row.what.startswith("Newton sweeps")).reached
    assert torch.get_num_threads() == threads


def test_the_figures_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "LENGTH", 40)
    monkeypatch.setattr(figures, "SWEEPS", 6)
    monkeypatch.setattr(figures, "WIDTH", 4)
    figures.main(str(tmp_path))
    tables = {
        path.stem: list(csv.DictReader(path.read_text().splitlines())) for path in tmp_path.glob("*.csv")
    }
    assert len(tables["recurrent_lyapunov"]) == 88
    assert {row["gain"] for row in tables["recurrent_convergence"]} == {"0.5", "2", "3"}
    assert {row["window"] for row in tables["recurrent_windows"]} == {"16", "32", "64", "128", "40"}
    assert all(
        float(row["true Jacobian"]) < 1e-10 < float(row["its diagonal"])
        for row in tables["recurrent_gradient"]
    )
    for name in ("recurrent_convergence", "recurrent_lyapunov"):
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
