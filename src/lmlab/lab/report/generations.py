"""What the models of a loop make, generation by generation: points of 25 modes, digits, text."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmlab.lab.report.chart import HALF, SMALL, Colour, Drawing, Series, line_chart, svg
from lmlab.lab.report.figure import Figure, Panel, Table, html_table
from lmlab.lab.report.read import array, mapping, objects
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import escape, finite, number

SIDE = 8  # grey values a side of a digit
REACH = 3.2  # of the square in which points are drawn
Labels = Sequence[tuple[str, Colour, int]]


def figure(
    arms: Sequence[Mapping[str, Any]], labels: Labels, real: Mapping[str, Any], suffix: str, of: str
) -> Figure | None:
    """Samples of every arm that isn't a control, real rows first."""
    shown = [
        (label, objects(arm.get("samples")))
        for arm, (label, _, _) in zip(arms, labels, strict=True)
        if not arm.get("control") and objects(arm.get("samples"))
    ]
    if not shown:
        return None
    kind = str(shown[0][1][0].get("kind"))
    first = [{"generation": "real", "kind": kind, "rows": array(real.get("rows"))}] if real else []
    if kind == "text":
        return _texts([(label, [*first, *told]) for label, told in shown], suffix, of)
    panels = [_pictures(f"generations{suffix}-{i + 1}", *one, first, kind) for i, one in enumerate(shown)]
    what = "Digits" if kind == "digits" else "Points of 25 modes"
    return Figure(
        f"generations{suffix}",
        f"{what} by generation{of}",
        "What the first seed's models make, real ones first; look for kinds that are gone and for what grows "
        "alike, at low λ first.",
        panels,
    )


def _pictures(
    name: str, label: str, told: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]], kind: str
) -> Panel:
    shown = [*first, *told]
    rows = []
    for sample in shown:
        for i, values in enumerate(array(sample.get("rows"))):
            rows.append([label, sample.get("generation"), i, *map(finite, array(values))])
    width = max((len(row) for row in rows), default=3) - 3
    head = ["x", "y"] if kind == "points" else [f"pixel_{i}" for i in range(width)]

    def draw(name: str, size: int) -> str:
        columns = min(len(shown), 3 if size > SMALL else 2)
        gap, top = 14.0, 20.0
        side = (size - gap * (columns - 1)) / columns
        parts = []
        for number_, sample in enumerate(shown):
            x, y = (number_ % columns) * (side + gap), top + (number_ // columns) * (side + top + 8)
            t = sample.get("generation")
            title = "real" if t == "real" else f"t = {t}"
            parts.append(f'<text class="ink" x="{x:.1f}" y="{y - 6:.1f}">{escape(title)}</text>')
            grid = [[finite(v) for v in array(row)] for row in array(sample.get("rows"))]
            parts.append((_points if kind == "points" else _digits)(grid, x, y, side))
        lines = -(-len(shown) // columns)
        description = ", ".join(f"t = {s.get('generation')}: {len(array(s.get('rows')))} rows" for s in shown)
        return svg(name, size, lines * (side + top + 8), f"Samples of {label}", description, parts)

    body = Drawing(draw(name, HALF), draw(f"{name}-small", SMALL))
    return Panel(name, body, Table(["arm", "generation", "row", *head], rows), title=label)


def _points(rows: Sequence[Sequence[float | None]], x: float, y: float, side: float) -> str:
    """Dots: one path, since there are many. What lies outside the square isn't drawn."""
    known = [(p[0], p[1]) for p in rows if len(p) == 2 and p[0] is not None and p[1] is not None]
    dots = "".join(
        f"M{x + side * (a + REACH) / (2 * REACH):.1f} {y + side * (REACH - b) / (2 * REACH):.1f}h0"
        for a, b in known
        if max(abs(a), abs(b)) < REACH
    )
    return (
        f'<rect class="empty" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
        f'<path class="line s0" d="{dots}"/>'
    )


def _digits(rows: Sequence[Sequence[float | None]], x: float, y: float, side: float) -> str:
    """Squares of 8 × 8, four a line, ink on the ground of the page."""
    columns = 4
    step = side / columns
    size = (step - 3) / SIDE
    ground = f'<rect class="empty" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
    paths: dict[int, list[str]] = {}
    for i, values in enumerate(rows[: columns * columns]):
        left, top = x + (i % columns) * step + 1.5, y + (i // columns) * step + 1.5
        for j, value in enumerate(values[: SIDE * SIDE]):
            shade = round(8 * min(1.0, max(0.0, value or 0.0)))
            if shade:
                at = f"M{left + (j % SIDE) * size:.1f} {top + (j // SIDE) * size:.1f}"
                paths.setdefault(shade, []).append(f"{at}h{size:.1f}v{size:.1f}h-{size:.1f}z")
    return ground + "".join(
        f'<path class="bar s7" fill-opacity="{shade / 8:.2f}" d="{"".join(squares)}"/>'
        for shade, squares in sorted(paths.items())
    )


def _texts(shown: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], suffix: str, of: str) -> Figure:
    name = f"generations{suffix}"
    rows = [
        [label, sample.get("generation"), i, str(text)]
        for label, told in shown
        for sample in told
        for i, text in enumerate(array(sample.get("rows")))
    ]
    seen: set[str] = set()
    cells = []
    for label, told in shown:
        for sample in told:
            t = str(sample.get("generation"))
            if t == "real" and t in seen:
                continue  # the same text stands above every loop
            seen.add(t)
            texts = " ¶ ".join(str(text) for text in array(sample.get("rows")))
            cells.append([escape("real text" if t == "real" else label), escape(t), escape(texts)])
    body = html_table(["loop", "generation", "what it writes"], cells, text=(0, 1, 2))
    return Figure(
        name,
        f"What it writes by generation{of}",
        "Rows of the first seed's models, real text first; ¶ stands between rows, which begin and end anywhere.",
        [Panel(name, body, Table(["arm", "generation", "row", "text"], rows), wide=True)],
    )


def modes(arms: Sequence[Mapping[str, Any]], labels: Labels, suffix: str, of: str) -> Figure | None:
    """Modes that are left, and beside them how wide they are."""
    left: list[Series] = []
    wide: list[Series] = []
    rows: list[list[Any]] = []
    for arm, (label, colour, shape) in zip(arms, labels, strict=True):
        told = mapping(arm.get("modes"))
        times = [t for t in map(finite, array(arm.get("generations"))) if t is not None]
        found = [[finite(v) for v in array(told.get(key))] for key in ("left", "variance")]
        if not found[0]:
            continue
        for into, values in zip((left, wide), found, strict=True):
            points = list(zip(times, values, strict=False))
            into.append(Series(label, points, colour, dashed=colour == "grey", shape=shape))
        rows += [
            [arm.get("loop"), arm.get("bias"), arm.get("control"), *row]
            for row in zip(times, *found, strict=False)
        ]
    if not left:
        return None
    columns = ["loop", "bias", "control", "generation", "modes", "variance"]
    panels = []
    for name, series, axis in (
        (f"modes{suffix}-left", left, Axis("modes left of 25 (lower is poorer)", 0.0, 25.0)),
        (f"modes{suffix}-variance", wide, Axis("mean variance within a mode", 0.0)),
    ):
        body = line_chart(
            name,
            f"{axis.label} by generation{of}",
            "; ".join(f"{s.name} ends at {number(s.points[-1][1])}" for s in series if s.name),
            series,
            Axis("generation", form=lambda x: f"{x:g}"),
            axis,
            width=HALF,
        )
        panels.append(Panel(name, body, Table(columns, rows)))
    return Figure(
        f"modes{suffix}",
        f"Modes that are left{of}",
        "Total variance would hide it: modes die one by one, and those that live on may shrink or swell "
        "(the real ones have variance 0.0025).",
        panels,
    )
