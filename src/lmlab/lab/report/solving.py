"""Trained cells solved for all steps at once: where that ends, what a wrong Jacobian costs, and the time it takes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmlab.lab.report.chart import Rule, Series, line_chart
from lmlab.lab.report.figure import Figure, Panel, Table
from lmlab.lab.report.read import Stage, get, objects
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import finite, number

GAIN = "factor on the trained recurrent weights"


def figures(stages: Sequence[Stage]) -> list[Figure]:
    return [f for f in (_gain(stages), _gradient(stages), _speed(stages)) if f]


def _cells(stages: Sequence[Stage], what: str) -> Iterator[tuple[str, str, list[Mapping[str, Any]]]]:
    """(suffix of a name, what to call it, rows) of every layer that has these rows."""
    for i, stage in enumerate(stages):
        for told in objects(get(stage.result, "inside", "recurrent")):
            rows = objects(told.get(what))
            place = (finite(told.get("layer")) or 0) + 1
            if rows:
                yield f"{i + 1}-{place:g}", f"{stage.variant}, layer {place:g}", rows


def _line(rows: Sequence[Mapping[str, Any]], x: str, *y: str) -> list[tuple[float, float | None]]:
    return [(at, finite(get(row, *y))) for row in rows if (at := finite(row.get(x))) is not None]


def _gain(stages: Sequence[Stage]) -> Figure | None:
    panels = []
    for suffix, of, rows in _cells(stages, "by_gain"):
        table = Table(
            ["cell", "gain", "exponent", "sweeps"],
            [[of, *(row.get(k) for k in ("gain", "exponent", "sweeps"))] for row in rows],
        )
        exponents, sweeps = _line(rows, "gain", "exponent"), _line(rows, "gain", "sweeps")
        if not exponents:
            continue
        solved = [x for x, y in sweeps if y is not None]
        said = "; ".join(f"{x:g}: {number(y)}" for x, y in exponents)
        exponent = line_chart(
            f"gain-{suffix}-exponent",
            f"Lyapunov exponent against gain ({of})",
            said,
            [Series("exponent", exponents)],
            Axis(GAIN, 0.0),
            Axis("Lyapunov exponent"),
            rules=[Rule("y", 0.0, "chaos above")],
        )
        panels.append(Panel(f"gain-{suffix}-exponent", exponent, table, title=of))
        ends = f"solved up to gain {max(solved):g}" if solved else "never solved"
        drawn = line_chart(
            f"gain-{suffix}-sweeps",
            f"Newton sweeps against gain ({of})",
            ends,
            [Series("sweeps", sweeps, 1)],
            Axis(GAIN, 0.0, max(x for x, _ in exponents)),
            Axis("Newton sweeps over the whole text", low=0.0),
        )
        panels.append(Panel(f"gain-{suffix}-sweeps", drawn, table, title=f"Newton: {ends}"))
    if not panels:
        return None
    return Figure(
        "gain",
        "Where solving all steps at once ends",
        "The first recurrent layer with its recurrent weights made smaller and larger, on a held-out text. As its "
        "exponent nears 0, mistakes die out more slowly and sweeps are more; above it each grows, and no method "
        "but step by step helps. A gap: not solved. An exponent just below 0 is no promise.",
        panels,
    )


def _gradient(stages: Sequence[Stage]) -> Figure | None:
    panels = []
    for suffix, of, rows in _cells(stages, "by_gain"):
        series = [
            Series(
                name, [(x, y if y and y > 0 else None) for x, y in _line(rows, "gain", "gradient", key)], i
            )
            for i, (name, key) in enumerate((("true Jacobian", "true"), ("its diagonal", "diagonal")))
        ]
        series = [s for s in series if any(y is not None for _, y in s.points)]
        if not series:
            continue
        table = Table(
            ["cell", "gain", "true", "diagonal"],
            [[of, row.get("gain"), *(get(row, "gradient", k) for k in ("true", "diagonal"))] for row in rows],
        )
        name = f"gradient-{suffix}"
        drawn = line_chart(
            name,
            f"Relative error of the gradient ({of})",
            "; ".join(f"{s.name} ends at {number(s.points[-1][1])}" for s in series),
            series,
            Axis(GAIN, 0.0),
            Axis("relative error of a gradient", log=True),
        )
        panels.append(Panel(name, drawn, table, title=of))
    if not panels:
        return None
    return Figure(
        "gradient",
        "What a cheaper Jacobian would cost",
        "A gradient of the states by one reversed scan, against one product a step: with the true Jacobian it errs "
        "by rounding, with the diagonal that quasi-Newton sweeps use it is another gradient, unless the cell is "
        "diagonal itself. So solvers may take the diagonal forwards, never backwards.",
        panels,
    )


def _speed(stages: Sequence[Stage]) -> Figure | None:
    panels = []
    for suffix, of, rows in _cells(stages, "by_length"):
        lines: dict[str, list[tuple[float, float | None]]] = {}
        for row in rows:
            x, y = finite(row.get("length")), finite(row.get("seconds"))
            if x and y and y > 0:
                lines.setdefault(str(row.get("method")), []).append((x, 1e6 * y))
        if not lines:
            continue
        table = Table(
            ["cell", "method", "length", "seconds_a_step"],
            [[of, *(row.get(k) for k in ("method", "length", "seconds"))] for row in rows],
        )
        name = f"speed-{suffix}"
        drawn = line_chart(
            name,
            f"Microseconds a step against length ({of})",
            "; ".join(f"{m} ends at {number(points[-1][1])}" for m, points in lines.items()),
            [Series(m, points, i) for i, (m, points) in enumerate(lines.items())],
            Axis("tokens", log=True, at=sorted({x for points in lines.values() for x, _ in points})),
            Axis("processor time a step, microseconds", log=True),
        )
        panels.append(Panel(name, drawn, table, title=of))
    if not panels:
        return None
    return Figure(
        "speed",
        "What solving costs on this machine",
        "Processor time of a forward pass of the first recurrent layer, measured during this run. The cell "
        "itself is a compiled loop; Newton's method moves a Jacobian for every step and loses to it for all but "
        "the narrowest cells.",
        panels,
    )
