"""What synthetic rows are worth to a Gaussian: the map of n_e/n_r, and what a memory of more models adds."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lmlab.lab.report.chart import HALF, SMALL, Drawing, Rule, Series, line_chart, svg, text_width
from lmlab.lab.report.figure import Figure, Panel, Table
from lmlab.lab.report.read import array, mapping, objects
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import escape, finite, number, short

DEEPEST = 4.0  # a ratio of 4 or of 1/4 has the full colour


def phase_map(found: Sequence[Mapping[str, Any]], suffix: str, of: str) -> Figure | None:
    """One panel a map: cells coloured by n_e/n_r, the line where it is 1, and n_s*."""
    panels = [p for i, told in enumerate(found) if (p := _map(told, f"phase{suffix}-{i + 1}"))]
    if not panels:
        return None
    return Figure(
        f"phase{suffix}",
        f"Where synthetic rows help{of}",
        "The real rows n_e that would be worth as much as n_r fresh real and n_s synthetic ones a generation, "
        "over n_r: blue cells help, orange ones harm; the line is n_e = n_r, the dashed one n_s*, the formula's "
        "limit for many real rows.",
        panels,
    )


def _map(told: Mapping[str, Any], name: str) -> Panel | None:
    reals, synths = (_numbers(told.get(key)) for key in ("n_real", "n_synth"))
    ratio = [[finite(v) for v in array(row)] for row in array(told.get("ratio"))]
    if not reals or not synths or [len(r) for r in ratio] != [len(synths)] * len(reals):
        return None
    bias, d, limit = (finite(told.get(key)) for key in ("bias", "d", "admissible"))
    title = f"λ = {number(bias, 2)}, d = {number(d, 0)}"
    crossings = [_crossing(synths, row) for row in ratio]
    rows = [
        [bias, d, n_r, n_s, value, crossing, limit]
        for n_r, line, crossing in zip(reals, ratio, crossings, strict=True)
        for n_s, value in zip(synths, line, strict=True)
    ]

    def draw(name: str, width: int) -> str:
        return _draw(name, width, title, reals, synths, ratio, crossings, limit)

    body = Drawing(draw(name, HALF), draw(f"{name}-small", SMALL))
    columns = ["bias", "d", "n_real", "n_synth", "ratio", "crossing", "admissible"]
    return Panel(name, body, Table(columns, rows), title=title)


def _numbers(value: Any) -> list[float]:
    return [x for x in map(finite, array(value)) if x is not None and x >= 0]


def _crossing(synths: Sequence[float], line: Sequence[float | None]) -> float | None:
    """The last n_s at which the ratio falls through 1, straight between cells over log n_s."""
    found = None
    for (a, x), (b, y) in pairwise(zip(synths, line, strict=True)):
        if a > 0 and x is not None and y is not None and x >= 1 > y:
            part = (x - 1) / (x - y)
            found = math.exp(math.log(a) + part * (math.log(b) - math.log(a)))
    return found


def _place(values: Sequence[float], value: float) -> float | None:
    """Where `value` stands among `values`, in cells and over the logarithm; None outside."""
    for i, (a, b) in enumerate(pairwise(values)):
        if 0 < a <= value <= b:
            return i + (math.log(value) - math.log(a)) / (math.log(b) - math.log(a))
    return None


def _draw(
    name: str,
    width: int,
    title: str,
    reals: Sequence[float],
    synths: Sequence[float],
    ratio: Sequence[Sequence[float | None]],
    crossings: Sequence[float | None],
    limit: float | None,
) -> str:
    left = 12 + max(text_width(short(n)) for n in reals)
    step, size, top = (width - 4 - left) / len(synths), 30.0, 24.0
    bottom = top + size * len(reals)

    def across(cell: float) -> float:
        return left + step * (cell + 0.5)

    def down(cell: int) -> float:  # many rows above
        return bottom - size * (cell + 0.5)

    parts = ['<text class="dim" x="0" y="14">real rows n_r</text>']
    for i, line in enumerate(ratio):
        y = down(i)
        parts.append(
            f'<text class="dim" x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{short(reals[i])}</text>'
        )
        for j, value in enumerate(line):
            tip = f"n_r {short(reals[i])}, n_s {short(synths[j])}: {number(value)}"
            parts.append(_cell(value, across(j), y, step, size, tip))
    parts += [
        f'<text class="dim" x="{across(j):.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{short(n)}</text>'
        for j, n in enumerate(synths)
    ]
    places = [(i, _place(synths, c) if c is not None else None) for i, c in enumerate(crossings)]
    border = [f"{across(p):.1f},{down(i):.1f}" for i, p in places if p is not None]
    parts += [f'<polyline class="line s7" points="{" ".join(border)}"/>'] if len(border) > 1 else []
    star = _place(synths, limit) if limit is not None else None
    if star is not None:
        x = across(star)
        parts.append(f'<line class="rule" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"/>')
        parts.append(f'<text class="dim" x="{x:.1f}" y="14" text-anchor="middle">n_s*</text>')
    middle = left + step * len(synths) / 2
    parts.append(
        f'<text class="dim" x="{middle:.1f}" y="{bottom + 35:.1f}" text-anchor="middle">synthetic rows n_s</text>'
    )
    description = "; ".join(
        f"n_r {short(n)} crosses 1 at n_s {short(c)}"
        for n, c in zip(reals, crossings, strict=True)
        if c is not None
    )
    return svg(
        name, width, bottom + 44, f"n_e/n_r, {title}", description or "it doesn't cross 1 on this map", parts
    )


def _cell(value: float | None, x: float, y: float, width: float, height: float, tip: str) -> str:
    box = (
        f'x="{x - width / 2 + 0.5:.1f}" y="{y - height / 2 + 0.5:.1f}" width="{width - 1:.1f}" '
        f'height="{height - 1:.1f}" rx="2"'
    )
    if value is None or value <= 0:
        return f'<rect class="empty" {box}/>'
    depth = min(1.0, abs(math.log(value)) / math.log(DEEPEST))
    look = f'class="bar {"s5" if value >= 1 else "s1"}" fill-opacity="{0.04 + 0.86 * depth:.2f}"'
    shown = f"{value:.2f}" if value < 9.995 else short(value)
    label = (
        f'<text class="ink" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{shown}</text>'
        if text_width(shown) <= width + 4
        else ""
    )
    return f"<rect {look} {box}><title>{escape(tip)}</title></rect>{label}"


def memory(found: Sequence[Mapping[str, Any]], suffix: str, of: str) -> Figure | None:
    """n_e/n_r against the number of models that the synthetic rows come from, one line a bias."""
    series, rows = [], []
    for i, told in enumerate(found):
        points = [
            (k, v)
            for a, b in zip(array(told.get("k")), array(told.get("ratio")), strict=False)
            if (k := finite(a)) is not None and (v := finite(b)) is not None
        ]
        if not points:
            continue
        series.append(Series(f"λ = {number(told.get('bias'), 2)}", points, i))
        rows += [[told.get("bias"), told.get("n_real"), told.get("n_synth"), *p] for p in points]
    if not series:
        return None
    name = f"memory{suffix}"
    ticks = sorted({x for s in series for x, _ in s.points})
    sizes = mapping(objects(found)[0])
    body = line_chart(
        name,
        f"What a memory of K models adds{of}",
        "; ".join(f"{s.name}: {number(s.points[0][1])} to {number(s.points[-1][1])}" for s in series),
        series,
        Axis("memory K, models", log=True, at=ticks, form=lambda x: f"{x:g}"),
        Axis("n_e / n_r"),
        rules=[Rule("y", 1.0, "worth nothing")],
        width=HALF,
    )
    return Figure(
        name,
        f"Rows of several earlier models{of}",
        f"Real rows' worth of {number(sizes.get('n_real'), 0)} fresh real and {number(sizes.get('n_synth'), 0)} "
        "synthetic rows a generation, in real rows, when the synthetic ones come from the K newest models in "
        "equal parts.",
        [Panel(name, body, Table(["bias", "n_real", "n_synth", "k", "ratio"], rows))],
    )
