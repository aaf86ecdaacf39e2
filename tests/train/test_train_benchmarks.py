"""The benchmarks of this room run from end to end on small sizes."""

import math

import pytest

from lmlab.lab.bench import run_part


def test_the_training_benchmark_runs() -> None:
    rows = run_part("train", quick=True)
    assert [row.what.split(",")[0] for row in rows][:1] == ["training"]
    assert {"preparation of a batch", "peak memory of a step"} <= {row.what.split(",")[0] for row in rows}
    assert all(row.ours is not None and math.isfinite(row.ours) and row.ours > 0 for row in rows)


@pytest.mark.peer
def test_the_generation_benchmark_runs_and_the_texts_agree() -> None:
    pytest.importorskip("transformers")
    rows = run_part("generate", quick=True)
    assert len(rows) == 4
    assert not any(row.note for row in rows)
