"""The figures of a loop: samples, modes, maps, memory, and what differs from the control."""

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lab.synthetic_run import HOSTILE, write_run
from lmlab.lab.report import against, generations, plateau, write_report
from lmlab.lab.report.autophagy import _labels
from lmlab.lab.report.figure import Figure

LABELS = [("fresh (n = 3)", 0, 0), ("control (n = 3)", "grey", 0)]


def lines(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def arms(values=((1.0, 3.0), (1.1, 3.2), (0.9, 3.1)), **more):
    """A loop and its control, whose last generation is 1.0, 1.1, 0.9."""
    other = [(1.0, 1.0), (1.1, 1.1), (0.9, 0.9)]
    told = [("fresh", False, [list(row) for row in values]), ("fresh", True, [list(row) for row in other])]
    return [
        {
            "loop": loop, "bias": 1.0, "control": control, "generations": [1, 2], "seeds": 3,
            "metrics": {"bits_per_byte": {"mean": [1.0, sum(r[-1] or 0.0 for r in rows) / 3], "values": rows}},
        } | (more if not control else {})
        for loop, control, rows in told
    ]  # fmt: skip


def parsed(figure: Figure | None) -> list[ET.Element]:
    assert figure is not None
    return [ET.fromstring(f"<div>{panel.html}</div>") for panel in figure.panels]


def test_differences_from_the_control_are_paired_by_seed() -> None:
    figure = against.figure(arms(), ["bits_per_byte"], ["fresh", "control"], "", "")
    (body,) = parsed(figure)
    assert [e.text for e in body.iter("strong")] == ["3.100 (+2.100)"]
    (row,) = figure.panels[0].table.rows
    low, high = row[7:9]
    half = 4.303 * 0.1 / 3**0.5  # of the differences 2.0, 2.1, 2.2
    assert row[:3] == ["fresh", 1.0, "bits_per_byte"] and (low, high) == pytest.approx(
        (2.1 - half, 2.1 + half), abs=1e-3
    )
    same = against.figure(arms([(1, 0.8), (1, 1.2), (1, 1.0)]), ["bits_per_byte"], ["a", "b"], "", "")
    assert not list(parsed(same)[0].iter("strong"))
    assert (
        against.figure(arms([(1, None), (1, 1.2), (1, 1.0)]), ["bits_per_byte"], ["a", "b"], "", "") is None
    )
    assert against.figure(arms()[:1], ["bits_per_byte"], ["a"], "", "") is None


def test_a_map_says_where_it_crosses_one() -> None:
    told = {
        "bias": 0.5, "d": 1, "n_real": [10, 100], "n_synth": [0, 10, 100], "ratio": [[1.0, 1.2, 0.8], [1.0, 1.1, 1.1]],
        "admissible": 32.0,
    }  # fmt: skip
    figure = plateau.phase_map([told, {"n_real": [1], "n_synth": [], "ratio": [[]]}], "", "")
    (body,) = parsed(figure)
    shown = [e.text for e in body.iter() if e.tag.endswith("text")]
    assert shown.count("1.20") == 2 and shown.count("n_s*") == 2  # on a page and on a phone
    rows = figure.panels[0].table.rows
    assert rows[0][5] == pytest.approx(10**1.5) and rows[3][5] is None and len(rows) == 6
    assert plateau.phase_map([{}], "", "") is None


def test_memory_is_a_line_a_bias() -> None:
    told = [
        {"bias": b, "k": [1, 2, 20], "ratio": [1.1, 1.2, 1.9], "n_real": 9, "n_synth": 9} for b in (1, 0.5)
    ]
    figure = plateau.memory(told, "", "")
    parsed(figure)
    assert len(figure.panels[0].table.rows) == 6 and "9 fresh real" in figure.reading
    assert plateau.memory([{}], "", "") is None


@pytest.mark.parametrize(("kind", "row"), [("points", [0.5, -1.0]), ("digits", [0.5] * 64)])
def test_pictures_by_generation(kind: str, row: list[float]) -> None:
    told = [{"generation": t, "kind": kind, "rows": [row] * 3} for t in (1, 2)]
    figure = generations.figure(arms(samples=told), LABELS, {"kind": kind, "rows": [row]}, "", "")
    (body,) = parsed(figure)
    assert [e.text for e in body.iter() if e.tag.endswith("text")] == ["real", "t = 1", "t = 2"] * 2
    assert len(figure.panels[0].table.rows) == 7 and figure.panels[0].table.rows[-1][3:] == row
    assert generations.figure(arms(), LABELS, {}, "", "") is None


def test_texts_by_generation_are_text() -> None:
    told = [{"generation": 1, "kind": "text", "rows": [HOSTILE, "a"]}]
    figure = generations.figure(arms(samples=told), LABELS, {"kind": "text", "rows": ["b"]}, "", "")
    (body,) = parsed(figure)
    assert not list(body.iter("script")) and "<" in "".join(body.itertext())


def test_modes_are_two_panels() -> None:
    figure = generations.modes(arms(modes={"left": [25, 20.5], "variance": [0.002, None]}), LABELS, "", "")
    parsed(figure)
    assert [p.name for p in figure.panels] == ["modes-left", "modes-variance"]
    assert figure.panels[0].table.rows[1][3:] == [2, 20.5, None]


def test_every_figure_has_its_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = next(run.glob("stages/autophagy-*/stage.json"))
    told = json.loads(path.read_text())
    samples = [{"generation": 1, "kind": "points", "rows": [[0.0, 1.0], [None, 2.0]]}]
    told["result"]["arms"] = arms(samples=samples, modes={"left": [3], "variance": [0.1]})
    told["result"]["real"] = {"kind": "points", "rows": [[1.0, 1.0]]}
    told["result"]["phase"] = [
        {"bias": 1, "d": 1, "n_real": [2], "n_synth": [1], "ratio": [[1.5]], "admissible": None}
    ]
    told["result"]["memory"] = [{"bias": 1, "k": [1, 2], "ratio": [1.0, 1.5], "n_real": 5, "n_synth": 5}]
    path.write_text(json.dumps(told))
    ET.fromstring(write_report(run).read_text(encoding="utf-8"))
    for name in ("generations-1", "modes-left", "modes-variance", "phase-1", "memory", "ellipses", "log-det"):
        ET.parse(run / f"figures/{name}.svg")
        assert len(lines(run / f"figures/{name}.csv")) > 1
    assert len(lines(run / "figures/against.csv")) == 2


def test_many_controls_share_an_entry_of_the_legend() -> None:
    many = [a | {"bias": bias} for bias in (1.0, 0.9, 0.8, 0.7, 0.6) for a in arms()]
    labels = [name for name, _, _ in _labels(many)]
    assert labels[:4] == ["fresh, λ = 1.0 (n = 3)", "controls (n = 3)", "fresh, λ = 0.9 (n = 3)", ""]
    few = [name for name, _, _ in _labels(many[:4])]
    assert few[1::2] == ["control of fresh, λ = 1.0 (n = 3)", "control of fresh, λ = 0.9 (n = 3)"]
