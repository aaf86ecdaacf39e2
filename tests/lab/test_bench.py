"""The frame of `lmlab bench`: targets, interleaving, the table, the JSON."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lmlab.lab.bench import Row, benchmark, compare, table, write_json, write_markdown


@pytest.mark.parametrize(
    ("ratio", "target", "reached"),
    [
        (2.0, ">= 1.5", True),
        (1.0, ">= 1.5", False),
        (0.9, "<= 1.0", True),
        (1.1, "<= 1.0", False),
        (3.0, "", None),
    ],
)
def test_a_target_is_reached_or_missed(ratio: float, target: str, reached: bool | None) -> None:
    assert Row("x", ratio=ratio, target=target).reached is reached


def test_a_target_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'>= 2\.5'"):
        _ = Row("x", ratio=1.0, target="about 2").reached


def test_rivals_take_turns() -> None:
    calls: list[str] = []
    times = compare({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=1)
    assert calls == ["a", "b"] + ["a", "b"] * 3
    assert times["a"].repeats == 3 and 0 <= times["a"].low <= times["a"].median <= times["a"].high


def test_short_calls_are_repeated_inside_a_measurement() -> None:
    calls: list[int] = []
    compare({"a": lambda: calls.append(1)}, repeats=1, least=0.002)
    assert len(calls) > 10


def test_the_mark_names_the_part() -> None:
    @benchmark("toy")
    def rows(quick: bool) -> list[Row]:  # type: ignore[misc]
        return [Row("x")] if quick else []

    assert rows.part == "toy"  # type: ignore[attr-defined]


def test_table_and_json_hold_the_figures(tmp_path: Path) -> None:
    rows = [
        Row("encode", "other", ours=1.5e-6, theirs=3.2e-3, ratio=2133.0, target=">= 2"),
        Row("memory", ours=12.5, unit="MiB", note="peak above import"),
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table("toy", rows))
    text = console.export_text()
    for part in ("1.5 µs", "3.2 ms", "2.13e+03", "reached", "12.5 MiB", "peak above import"):
        assert part in text
    write_json(tmp_path / "bench.json", {"toy": rows})
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert (
        kept["parts"]["toy"][0]["reached"] is True and kept["parts"]["toy"][1]["note"] == "peak above import"
    )


def test_markdown_is_one_table(tmp_path: Path) -> None:
    rows = [
        Row("p(a|b)", "other", ours=1.5e-6, theirs=3.2e-3, ratio=2133.0, target=">= 2"),
        Row("memory", ours=12.5, unit="MiB", note="peak"),
    ]
    write_markdown(tmp_path / "table.md", {"toy": rows, "empty": []})
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2] == "| toy | p(a\\|b) | other | 1.5 µs | 3.2 ms | 2.13e+03 | >= 2 | reached |"
    assert lines[3] == "| toy | memory (peak) |  | 12.5 MiB |  |  |  |  |"
    assert len(lines) == 4
