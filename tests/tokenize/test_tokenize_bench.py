"""The benchmark runs, small."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lmlab.lab.bench import run_part


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:the source holds too few pieces:UserWarning")
def test_every_row_of_the_benchmark_comes(capfd: pytest.CaptureFixture[str]) -> None:
    rows = run_part("tokenize", quick=True, console=Console(file=io.StringIO(), width=200))
    told = {(row.what.partition(",")[0], row.rival.partition(" ")[0]) for row in rows}
    assert {
        ("encode", "sentencepiece"),
        ("encode", "tokenizers"),
        ("encode", "tiktoken"),
        ("exact sampling", "sentencepiece"),
        ("training peak", "memory_limit"),
        ("bytes/token", "sentencepiece"),
    } <= told
    peak = next(row for row in rows if row.what.startswith("training peak"))
    assert peak.reached
    assert all(row.ratio is None or row.ratio > 0 for row in rows)
