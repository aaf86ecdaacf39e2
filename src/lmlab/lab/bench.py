"""The frame of `lmlab bench`: name a part, time rivals side by side, print a table, keep the numbers.

A part is a file in `lmlab.benchmarks` with a generator of rows under `@benchmark("name")`. Timings are made
for ratios: the rivals take turns inside one run, so that whatever else the machine does meets them alike.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from statistics import median
from typing import Literal

from rich.console import Console
from rich.table import Table

from lmlab.retry import atomic_write

Rows = Callable[[bool], Iterator["Row"]]
WIDE = 160  # columns of a table that goes into a file or a pipe, where nobody can make the window wider


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, least and most of the repeats."""

    median: float
    low: float
    high: float
    repeats: int


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table.

    ours, theirs: the two figures, in `unit`; None where there is no such figure.
    ratio: the number that `target` speaks of, e.g. theirs / ours. target: ">= 2.5" or "<= 1.15"; "" for none.
    """

    what: str
    rival: str = ""
    ours: float | None = None
    theirs: float | None = None
    unit: str = "s"
    ratio: float | None = None
    target: str = ""
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the ratio meets the target; None without a target."""
        if not self.target or self.ratio is None:
            return None
        sign, bound = self.target.split()
        if sign not in ("<=", ">="):
            raise ValueError(f"target must read '>= 2.5' or '<= 1.15', got {self.target!r}")
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def benchmark(part: str) -> Callable[[Rows], Rows]:
    """Marks a generator of rows as belonging to `part`, the name that `lmlab bench PART` uses."""

    def mark(rows: Rows) -> Rows:
        rows.__dict__["part"] = part
        return rows

    return mark


def compare(
    cases: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 7,
    warmup: int = 1,
    clock: Literal["cpu", "wall"] = "cpu",
    least: float = 0.0,
) -> dict[str, Timing]:
    """Times the cases in turn, A B C A B C …, and gives the median of each.

    clock: "cpu" is the processor time of this process, all threads added; "wall" is elapsed time.
    least: seconds that one measurement should last; short calls are repeated inside it to reach that.
    """
    read = time.process_time if clock == "cpu" else time.perf_counter
    inner = {}
    for name, call in cases.items():
        for _ in range(max(1, warmup)):
            start = time.perf_counter()
            call()
            took = time.perf_counter() - start
        inner[name] = max(1, int(least / max(took, 1e-9)))
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, call in cases.items():
            count = inner[name]
            start = read()
            for _ in range(count):
                call()
            taken[name].append((read() - start) / count)
    return {name: Timing(median(t), min(t), max(t), repeats) for name, t in taken.items()}


def parts() -> dict[str, list[Rows]]:
    """What `lmlab bench` can run: the marked generators of every file of `lmlab.benchmarks`, by part."""
    package = import_module("lmlab.benchmarks")
    found: dict[str, list[Rows]] = {}
    for module in sorted(m.name for m in iter_modules(package.__path__)):
        for value in vars(import_module(f"lmlab.benchmarks.{module}")).values():
            if callable(value) and "part" in getattr(value, "__dict__", {}):
                found.setdefault(value.part, []).append(value)
    return found


def run_part(part: str, *, quick: bool = False, console: Console | None = None) -> list[Row]:
    """Runs one part and prints its table as the rows come."""
    known = parts()
    if part not in known:
        raise ValueError(f"no benchmark {part!r}; there are: {', '.join(sorted(known))}")
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDE)
    rows = []
    with console.status(f"bench {part}") as status:
        for source in known[part]:
            for row in source(quick):
                rows.append(row)
                status.update(f"bench {part}: {len(rows)} rows, last: {row.what}")
    console.print(table(part, rows))
    return rows


def table(part: str, rows: list[Row]) -> Table:
    """The rows as a table for the terminal."""
    shown = Table(title=f"lmlab bench {part}", title_justify="left")
    for name in ("what", "rival", "ours", "rival's", "ratio", "target", ""):
        shown.add_column(name, justify="left" if name in ("what", "rival") else "right")
    marks = {True: "[green]reached[/green]", False: "[red]missed[/red]", None: ""}
    for row in rows:
        what = f"{row.what}\n[dim]{row.note}[/dim]" if row.note else row.what
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        ours, theirs = _figure(row.ours, row.unit), _figure(row.theirs, row.unit)
        shown.add_row(what, row.rival, ours, theirs, ratio, row.target, marks[row.reached])
    return shown


def write_markdown(path: Path, results: Mapping[str, list[Row]]) -> None:
    """The rows of some parts as one table that can be pasted into a page."""
    lines = [
        "| part | what | rival | ours | rival's | ratio | target | |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    marks = {True: "reached", False: "missed", None: ""}
    for part, rows in results.items():
        for row in rows:
            cells = [
                part,
                f"{row.what} ({row.note})" if row.note else row.what,
                row.rival,
                _figure(row.ours, row.unit),
                _figure(row.theirs, row.unit),
                "" if row.ratio is None else f"{row.ratio:.3g}",
                row.target,
                marks[row.reached],
            ]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "s" or unit.startswith("s/"):
        for factor, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if value >= factor:
                return f"{value / factor:.3g} {name}{unit[1:]}"
        return f"{value / 1e-9:.3g} ns{unit[1:]}"
    return f"{value:.4g} {unit}"


def write_json(path: Path, results: Mapping[str, list[Row]]) -> None:
    """Keeps the rows of some parts, with what the machine was, as JSON."""
    machine = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    body = {part: [asdict(row) | {"reached": row.reached} for row in rows] for part, rows in results.items()}
    with atomic_write(path, "w", encoding="utf-8") as file:
        json.dump({"schema": 1, "machine": machine, "parts": body}, file, indent=1, ensure_ascii=False)
