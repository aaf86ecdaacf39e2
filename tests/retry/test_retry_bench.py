"""The benchmark runs, its exact rows are exact, and the storm simulator keeps the law and writes its figure."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from lmlab.benchmarks import retry_storm
from lmlab.benchmarks.retry_storm import Server, policies, storm

from lmlab.lab.bench import run_part

SHORT = Server(outage=(3.0, 6.0), ends=20.0)


@pytest.mark.peer
def test_the_benchmark_runs_and_its_counts_are_reached() -> None:
    for peer in ("tenacity", "stamina", "backoff"):
        pytest.importorskip(peer)
    rows = run_part("retry", quick=True)
    counts = [row for row in rows if row.unit == "" and row.target == "<= 0"]
    assert len(counts) >= 7 and all(row.reached for row in counts)
    assert any(row.what.startswith("storm") for row in rows)


def test_a_budget_bounds_the_storm() -> None:
    courses = [storm(policy, SHORT) for policy in policies()]
    plain, budgeted = courses[0], courses[-1]
    assert plain.total == plain.calls and plain.recovered is not None
    assert all(course.arrived == plain.arrived for course in courses)  # the same calls for all
    assert budgeted.total <= budgeted.calls + budgeted.calls // 10 + 1
    assert all(course.amplification > 3 for course in courses[1:4])
    again = storm(policies()[-1], SHORT)
    assert (again.attempts, again.good) == (budgeted.attempts, budgeted.good)
    for course in courses:
        assert sum(course.attempts) == course.total and sum(course.arrived) == course.calls
        assert sum(course.good) <= course.calls


def test_a_server_without_trouble_sees_no_retry() -> None:
    for policy in policies():
        course = storm(policy, Server(load=0.3, outage_speed=1.0, outage=(3.0, 6.0), ends=20.0))
        assert course.total == course.calls and course.recovered == 0


def test_the_figure_and_its_numbers(tmp_path: Path) -> None:
    courses = [storm(policy, SHORT) for policy in policies()]
    retry_storm.write(tmp_path, courses, SHORT)
    with (tmp_path / "retry_storm.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 5 * 20
    assert sum(int(row["attempts"]) for row in table) == sum(course.total for course in courses)
    root = ET.parse(tmp_path / "retry_storm.svg").getroot()
    text = " ".join("".join(node.itertext()) for node in root.iter())
    assert "attempts a second" in text and all(policy.name in text for policy in policies())
