"""Charts as SVG text. Colours are CSS variables, so that one drawing reads on light, dark and paper.

Every function returns a `Drawing`: the same chart for a page and for a phone, each one `<svg>` with a title
and a description for those who can't see it, or who point at it. Ids are made from `name`, which is unique
in a report.
"""

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lmlab.lab.report.scale import Axis, Scale, fit
from lmlab.lab.report.text import escape, finite, number, short, shorten

HALF, FULL = 480, 820  # widths in pixels of the drawing
SMALL = 340  # on a phone
COLOURS = 8
LINE = 18  # height of a line of text
ROOM = 116.0  # few bars or rows are drawn wider, to fill at least this height
MARKED = 60  # a line of more points is drawn without marks

Point = tuple[float, float | None]
Colour = int | Literal["grey"]


@dataclass(frozen=True)
class Drawing:
    """One chart twice: `full` for a page and a file, `small` for a phone, with text of the same size."""

    full: str
    small: str


@dataclass(frozen=True)
class Series:
    """One line. `points`: (x, y), y None is a gap; `band`: (x, low, high); `shape`: of its marks, which else
    goes with the colour."""

    name: str
    points: Sequence[Point]
    colour: Colour = 0
    band: Sequence[tuple[float, float, float]] = ()
    marks: bool = True
    dashed: bool = False
    faint: bool = False
    shape: int | None = None


@dataclass(frozen=True)
class Rule:
    """A dashed line across the plot at a number of one axis."""

    axis: Literal["x", "y"]
    value: float
    label: str


@dataclass(frozen=True)
class Bar:
    """One bar. `label`: its row; `dots`: single values behind a mean; `note`: after the number."""

    label: str
    value: float
    colour: Colour = 0
    dots: Sequence[float] = ()
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Dot:
    """One row of an interval plot: a value, and the interval about it where there is one. `note`: after it."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: Colour = 0
    note: str = ""


@dataclass
class _Plot:
    """The rectangle that the data is drawn in, and the two scales."""

    x: Scale
    y: Scale
    left: float
    top: float
    right: float
    bottom: float
    body: list[str] = field(default_factory=list)

    def across(self, value: float) -> float:
        return self.left + self.x.place(value) * (self.right - self.left)

    def down(self, value: float) -> float:
        return self.bottom - self.y.place(value) * (self.bottom - self.top)


def line_chart(
    name: str,
    title: str,
    description: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    rules: Sequence[Rule] = (),
    width: int = HALF,
    height: int = 270,
    square: bool = False,
    margin: float = 0.0,
) -> Drawing:
    """Lines over two axes with a legend above.

    square: a unit is as long on y as on x. margin: at least so much on the left, so that charts one above the
    other can have one x axis.
    """
    xs = [p[0] for s in series for p in s.points] + [r.value for r in rules if r.axis == "x"]
    ys: list[float | None] = [p[1] for s in series for p in s.points]
    ys += [v for s in series for b in s.band for v in b[1:]] + [r.value for r in rules if r.axis == "y"]
    xscale, yscale = fit(x, xs), fit(y, ys)
    left = max(margin, 10 + max(map(text_width, map(y.form, yscale.ticks)), default=0))
    last = text_width(x.form(xscale.ticks[-1])) / 2 if xscale.ticks else 0.0

    def draw(name: str, width: int) -> str:
        legend, above = _legend(series, width) if len(series) > 1 else ("", 0)
        labelled = any(r.axis == "x" and r.label for r in rules)
        top = above + (24 if y.label else 8) + (14 if labelled else 0)
        plot = _Plot(xscale, yscale, left, top, width - max(12, last), top + height - 60)
        if square:
            plot.bottom = plot.top + (plot.right - plot.left) * (yscale.high - yscale.low) / (
                xscale.high - xscale.low
            )
        parts = [legend, *_axes(plot, x, y, above), *(_rule(plot, r) for r in rules)]
        for s in series:
            parts += _draw(plot, s, x, y)
        under, bottom = _under(x.label, plot.left, plot.right, plot.bottom, width)
        return svg(name, width, bottom, title, description, [*parts, *under])

    return _twice(draw, name, width)


def bar_chart(
    name: str,
    title: str,
    description: str,
    bars: Sequence[Bar],
    axis: Axis,
    *,
    width: int = FULL,
    form: Callable[[float], str] = number,
) -> Drawing:
    """Horizontal bars from 0, each with its number behind (as `form` writes it) and its label before it, on a
    phone above it."""
    scale = fit(Axis(axis.label, 0.0, axis.high), [b.value for b in bars] + [d for b in bars for d in b.dots])
    notes = [f"{form(b.value)}{b.note}" for b in bars]
    ends = [scale.place(max([b.value, *b.dots])) for b in bars]

    def draw(name: str, width: int) -> str:
        small = width <= SMALL
        labels = [shorten(b.label, 40 if small else 28) for b in bars]
        left = 6.0 if small else min(0.4 * width, 10 + max(map(text_width, labels), default=0))
        step = max(42.0 if small else 28.0, ROOM / max(1, len(bars)))
        thick = 16.0 if small else min(0.62 * step, 26.0)
        bottom = 8 + step * len(bars)
        # As wide as leaves room for each number behind its bar.
        rooms = [
            (width - 10 - text_width(n) - left) / max(end, 0.01) for n, end in zip(notes, ends, strict=True)
        ]
        plot = _Plot(scale, Scale(0, 1, False, ()), left, 8, left + min([*rooms, width - 16 - left]), bottom)
        parts = [_line("grid", plot.across(t), 4, plot.across(t), bottom) for t in scale.ticks]
        parts += _tick_labels([(plot.across(t), axis.form(t)) for t in scale.ticks], bottom + 16)
        for i, (bar, label, note) in enumerate(zip(bars, labels, notes, strict=True)):
            top = 8 + step * i + (step - 4 - thick if small else (step - thick) / 2)
            parts += _bar(plot, bar, top, thick, note, form)
            strong = "ink strong" if bar.strong else "ink"
            if small:
                parts.append(_text(left, top - 5, label, strong))
            else:
                parts.append(_text(left - 8, top + thick / 2 + 4, label, strong, "end"))
        under, bottom = _under(axis.label, left, plot.right, bottom, width)
        return svg(name, width, bottom, title, description, [*parts, *under])

    return _twice(draw, name, width)


def _bar(
    plot: _Plot, bar: Bar, top: float, thick: float, note: str, form: Callable[[float], str]
) -> list[str]:
    end, middle = plot.across(bar.value), top + thick / 2
    parts = [
        f'<rect class="bar {_colour(bar.colour)}" x="{plot.left:.1f}" y="{top:.1f}" '
        f'width="{max(end - plot.left, 1):.1f}" height="{thick:.1f}" rx="2">'
        f"<title>{escape(f'{bar.label}: {note}')}</title></rect>"
    ]
    parts += [
        f'<circle class="seed" cx="{plot.across(d):.1f}" cy="{middle:.1f}" r="3">'
        f"<title>{escape(f'{bar.label}, one seed: {form(d)}')}</title></circle>"
        for d in bar.dots
    ]
    furthest = max([end, *map(plot.across, bar.dots)])
    parts.append(_text(furthest + 7, middle + 4, note, "ink strong" if bar.strong else "ink"))
    return parts


def interval_chart(
    name: str,
    title: str,
    description: str,
    dots: Sequence[Dot],
    axis: Axis,
    *,
    zero: str,
    width: int = HALF,
) -> Drawing:
    """One dot a row with its interval, beside a line at 0 called `zero`; labels and notes above the dots.

    The axis is as long as its own bounds, if it has both; what lies beyond them is drawn as an arrow.
    """
    bounded = axis.low is not None and axis.high is not None
    scale = fit(axis, [0.0, *([] if bounded else (v for d in dots for v in (d.value, d.low, d.high)))])
    step, top = 38.0, 22.0

    def draw(name: str, width: int) -> str:
        bottom = top + step * len(dots) + 2
        plot = _Plot(scale, Scale(0, 1, False, ()), 14, top, width - 14, bottom)
        parts = [_line("grid", plot.across(t), top, plot.across(t), bottom) for t in scale.ticks]
        parts += _tick_labels([(plot.across(t), axis.form(t)) for t in scale.ticks], bottom + 16)
        parts.append(_rule(plot, Rule("x", 0.0, zero)))
        for i, dot in enumerate(dots):
            y = top + step * i + 27
            parts += _interval(plot, dot, y)
            room = max(6, int((width - text_width(dot.note)) / 8))
            parts.append(_text(0, y - 11, shorten(dot.label, room), "ink halo"))
            parts.append(_text(width, y - 11, dot.note, "dim halo", "end"))
        under, bottom = _under(axis.label, plot.left, plot.right, bottom, width)
        return svg(name, width, bottom, title, description, [*parts, *under])

    return _twice(draw, name, width)


def _interval(plot: _Plot, dot: Dot, y: float) -> list[str]:
    def across(value: float) -> float:
        return min(plot.right, max(plot.left, plot.across(value)))

    look, tip, parts = _colour(dot.colour), f"{dot.label}: {short(dot.value)}", []
    low, high = finite(dot.low), finite(dot.high)
    if low is not None and high is not None:
        tip += f", {short(low)} to {short(high)}"
        parts.append(_line(f"line {look}", across(low), y, across(high), y))
    x = across(dot.value)
    if x == plot.across(dot.value):
        return [*parts, _mark(Series(dot.label, (), dot.colour, shape=0), x, y, tip)]
    out = 7 if dot.value > 0 else -7
    points = f"{x + out:.1f},{y:.1f} {x - out / 2:.1f},{y - 5:.1f} {x - out / 2:.1f},{y + 5:.1f}"
    return [*parts, f'<polygon class="mark {look}" points="{points}"><title>{escape(tip)}</title></polygon>']


def heat_map(
    name: str,
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    row_label: str,
    column_label: str,
    width: int = HALF,
) -> Drawing:
    """Shares in 0 … 1: deeper colour is more, the number is in the cell; a dashed cell wasn't measured."""
    left = 10 + max(map(text_width, rows), default=0)
    top, size = 24, max(30.0, ROOM / max(1, len(rows)))

    def draw(name: str, width: int) -> str:
        step = (width - 4 - left) / max(1, len(columns))
        parts = [_text(0, 14, row_label, "dim")]
        for i, (row, cells) in enumerate(zip(rows, values, strict=True)):
            y = top + size * i
            parts.append(_text(left - 8, y + size / 2 + 4, row, "dim", "end"))
            for j, value in enumerate(cells):
                box = (
                    f'x="{left + step * j + 1:.1f}" y="{y + 1:.1f}" '
                    f'width="{step - 2:.1f}" height="{size - 2:.1f}" rx="3"'
                )
                tip = f"{row_label} {row}, {column_label} {columns[j]}"
                parts += _share(box, finite(value), tip, left + step * (j + 0.5), y + size / 2 + 4)
        bottom = top + size * len(rows)
        parts += [
            _text(left + step * (j + 0.5), bottom + 16, c, "dim", "middle") for j, c in enumerate(columns)
        ]
        under, bottom = _under(column_label, left, width, bottom, width)
        return svg(name, width, bottom, title, description, [*parts, *under])

    return _twice(draw, name, width)


def _share(box: str, value: float | None, tip: str, x: float, y: float) -> list[str]:
    """One cell of a heat map, and its number."""
    if value is None:
        return [f'<rect class="empty" {box}/>']
    shade = f'fill-opacity="{0.05 + 0.95 * min(1.0, max(0.0, value)):.2f}"'
    title = f"<title>{escape(f'{tip}: {value:.2f}')}</title>"
    return [f'<rect class="cell" {shade} {box}>{title}</rect>', _text(x, y, f"{value:.2f}", "ink", "middle")]


def _twice(draw: Callable[[str, int], str], name: str, width: int) -> Drawing:
    return Drawing(draw(name, width), draw(f"{name}-small", SMALL))


def _under(label: str, left: float, right: float, bottom: float, width: float) -> tuple[list[str], float]:
    """The name of the x axis below its ticks, in two lines if it must be; and where the drawing ends."""
    if not label:
        return [], bottom + 24
    head, bracket, rest = label.partition(" (")
    lines = [label] if text_width(label) <= width or not bracket else [head, f"({rest}"]
    parts = []
    for i, line in enumerate(lines):
        half = text_width(line) / 2
        middle = max(half, min(width - half, (left + right) / 2))
        parts.append(_text(middle, bottom + 35 + 16 * i, line, "dim", "middle"))
    return parts, bottom + 26 + 16 * len(lines)


def svg(name: str, width: float, height: float, title: str, description: str, parts: Iterable[str]) -> str:
    """One drawing with its accessible name and description."""
    small = width <= SMALL
    style, widest = ("chart small", 1.5 * width) if small else ("chart", 1.18 * width)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{style}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" style="max-width: {widest:.0f}px" role="img" '
        f'aria-labelledby="{escape(name)}-title {escape(name)}-desc">'
        f'<title id="{escape(name)}-title">{escape(title)}</title>'
        f'<desc id="{escape(name)}-desc">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def text_width(text: str) -> float:
    """About how wide 12 px text is: a browser's font isn't known here, so it is a little too much."""
    return 4 + sum(map(_character_width, text))


def _character_width(char: str) -> float:
    if unicodedata.east_asian_width(char) in "WF":
        return 12.5
    if char in " .,:;'|!()[]filjt1":
        return 5.0
    return 10.5 if char in "mwMW@%" or unicodedata.category(char) == "Lu" else 7.6


def _colour(colour: Colour) -> str:
    return "grey" if colour == "grey" else f"s{colour % COLOURS}"


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(
    x: float, y: float, text: str, style: str = "ink", anchor: Literal["start", "middle", "end"] = "start"
) -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}"{place}>{escape(text)}</text>'


def _legend(series: Sequence[Series], width: int) -> tuple[str, float]:
    parts, x, y = [], 0.0, 12.0
    for s in series:
        label = shorten(s.name, 40)
        if not label:
            continue
        size = 32 + text_width(label)
        if x and x + size > width:
            x, y = 0.0, y + LINE
        style = f"line {_colour(s.colour)}" + " dashed" * s.dashed + " faint" * s.faint
        parts.append(_line(style, x, y - 4, x + 20, y - 4))
        if s.marks and len(s.points) <= MARKED:
            parts.append(_mark(s, x + 10, y - 4, ""))
        parts.append(_text(x + 26, y, label))
        x += size + 8
    return "".join(parts), y + 8


def _axes(plot: _Plot, x: Axis, y: Axis, above: float) -> list[str]:
    parts = []
    for tick in plot.y.ticks:
        place = plot.down(tick)
        parts.append(_line("grid", plot.left, place, plot.right, place))
        parts.append(_text(plot.left - 7, place + 4, y.form(tick), "dim", "end"))
    parts.append(_line("axis", plot.left, plot.bottom, plot.right, plot.bottom))
    places = [plot.across(tick) for tick in plot.x.ticks]
    parts += [_line("axis", place, plot.bottom, place, plot.bottom + 4) for place in places]
    parts += _tick_labels(
        [(p, x.form(t)) for p, t in zip(places, plot.x.ticks, strict=True)], plot.bottom + 18
    )
    if y.label:
        parts.append(_text(0, above + 12, y.label, "dim"))
    return parts


def _tick_labels(labels: Sequence[tuple[float, str]], y: float) -> list[str]:
    """Labels along an axis; one that would run into its neighbour is left out."""
    parts, taken = [], -math.inf
    for place, label in labels:
        half = text_width(label) / 2
        if place - half > taken + 4:
            parts.append(_text(place, y, label, "dim", "middle"))
            taken = place + half
    return parts


def _rule(plot: _Plot, rule: Rule) -> str:
    if rule.axis == "x":
        place = plot.across(rule.value)
        near_end = place > (plot.left + plot.right) / 2
        label = _text(place, plot.top - 4, rule.label, "dim", "end" if near_end else "start")
        return _line("rule", place, plot.top - 2, place, plot.bottom) + label
    place = plot.down(rule.value)
    return _line("rule", plot.left, place, plot.right, place) + _text(
        plot.right, place - 5, rule.label, "dim", "end"
    )


def _draw(plot: _Plot, s: Series, x: Axis, y: Axis) -> list[str]:
    colour = _colour(s.colour)
    parts = []
    if s.band:
        upper = [f"{plot.across(a):.1f},{plot.down(c):.1f}" for a, _, c in s.band]
        lower = [f"{plot.across(a):.1f},{plot.down(b):.1f}" for a, b, _ in reversed(s.band)]
        parts.append(f'<polygon class="band {colour}" points="{" ".join(upper + lower)}"/>')
    style = f"line {colour}" + " dashed" * s.dashed + " faint" * s.faint
    for run in _runs(s.points):
        if len(run) > 1:
            points = " ".join(f"{plot.across(a):.1f},{plot.down(b):.1f}" for a, b in run)
            parts.append(f'<polyline class="{style}" points="{points}"/>')
        if (s.marks and len(s.points) <= MARKED) or len(run) == 1:
            parts += [
                _mark(s, plot.across(a), plot.down(b), f"{s.name}: {x.form(a)}, {short(b)}") for a, b in run
            ]
    return parts


def _runs(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """Stretches without gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for a, b in points:
        known = finite(b)
        if known is None:
            runs.append([])
        else:
            runs[-1].append((a, known))
    return [run for run in runs if run]


def _mark(s: Series, x: float, y: float, tip: str) -> str:
    """A shape for each colour: colour is never the only difference."""
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    style = f'class="mark {_colour(s.colour)}"'
    shape = s.shape if s.shape is not None else 0 if s.colour == "grey" else s.colour
    shape %= 4
    if shape == 0:
        return f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="3.6">{inner}</circle>'
    if shape == 1:
        return f'<rect {style} x="{x - 3.3:.1f}" y="{y - 3.3:.1f}" width="6.6" height="6.6">{inner}</rect>'
    corners = (
        [(0, -4.4), (4.2, 3.2), (-4.2, 3.2)] if shape == 2 else [(0, -4.8), (4.8, 0), (0, 4.8), (-4.8, 0)]
    )
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return f'<polygon {style} points="{points}">{inner}</polygon>'
