"""The law of segmentations: a text's lattice, and how tokens and entropy change with alpha."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.lab.report.chart import FULL, SMALL, Colour, Drawing, Series, line_chart, svg
from lmlab.lab.report.figure import Figure, Panel, Table
from lmlab.lab.report.read import Stage, array, mapping, objects
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import escape, finite, number, whole

FAINTEST = 0.002  # posterior of an edge that is drawn
WIDEST = 7.0  # of an edge with posterior 1, in pixels
STEP = 24  # of a byte, at most


def figures(stages: Sequence[Stage]) -> list[Figure]:
    """Of the tokenizers that have told so; for the lattice the first of them."""
    found = [_curves(stages)]
    first = next((_lattice(s) for s in stages if _edges(s)), None)
    return [f for f in [first, *found] if f]


@dataclass(frozen=True)
class Edge:
    start: int
    end: int
    piece: str
    probability: float
    best: bool


def _edges(stage: Stage) -> list[Edge]:
    told = mapping(stage.result.get("lattice"))
    size = len(str(told.get("text") or "").encode("utf-8", "replace"))
    best = {tuple(map(whole, pair)) for pair in array(told.get("best")) if isinstance(pair, list)}
    found = []
    for row in array(told.get("edges")):
        if not isinstance(row, list) or len(row) != 4:
            continue
        start, end, probability = whole(row[0]), whole(row[1]), finite(row[3])
        if start is None or end is None or probability is None or not 0 <= start < end <= size:
            continue
        place = (start, end)
        found.append(Edge(*place, str(row[2]), min(1.0, max(0.0, probability)), place in best))
    return found


def _lattice(stage: Stage) -> Figure:
    told = mapping(stage.result.get("lattice"))
    text, edges = str(told.get("text")), _edges(stage)
    rows = [[e.start, e.end, e.piece, e.probability, e.best] for e in edges]
    path = " | ".join(e.piece for e in edges if e.best)
    drawing = Drawing(
        _drawn("lattice", FULL, text, edges, path), _drawn("lattice-small", SMALL, text, edges, path)
    )
    return Figure(
        "lattice",
        "Every way to cut one text",
        f"Each arc is a piece of the vocabulary over the bytes that it covers, as wide as the probability that a draw "
        f"at α = {number(told.get('alpha'), 1)} takes it; the best cut is on top in colour.",
        [
            Panel(
                "lattice",
                drawing,
                Table(["start", "end", "piece", "probability", "best"], rows),
                title=stage.variant,
                wide=True,
            )
        ],
    )


def _drawn(name: str, width: int, text: str, edges: Sequence[Edge], path: str) -> str:
    size = len(text.encode("utf-8", "replace"))
    shown = min(size, width // (STEP // 2))  # bytes; a phone sees the beginning
    step = min(STEP, width / max(1, shown))
    drawn = [e for e in edges if e.end <= shown and (e.probability >= FAINTEST or e.best)]
    top = 8 + max((_high(e, step) for e in drawn), default=20.0)
    parts = [_arc(e, step, top) for e in sorted(drawn, key=lambda e: (e.best, e.probability))]
    at = 0
    for character in text:
        wide = len(character.encode("utf-8", "replace"))
        if at + wide > shown:
            break
        middle = step * (at + wide / 2)
        parts.append(
            f'<text x="{middle:.1f}" y="{top + 18:.1f}" text-anchor="middle">{_visible(character)}</text>'
        )
        at += wide
    description = f"The best cut is {path}; {len(drawn)} pieces are drawn."
    return svg(name, width, top + 28, "Lattice of segmentations", description, parts)


def _high(edge: Edge, step: float) -> float:
    return 10 + 2.6 * step * math.pow(edge.end - edge.start, 0.62)


def _arc(edge: Edge, step: float, base: float) -> str:
    left, right = step * edge.start + 1.5, step * edge.end - 1.5
    high = base - 4 / 3 * _high(edge, step) * 0.72
    style, wide = ("line s1", 2.0) if edge.best else ("line s0", max(0.6, WIDEST * edge.probability))
    return (
        f'<path class="{style}" style="stroke-width: {wide:.2f}px; stroke-opacity: {1 if edge.best else 0.55}" '
        f'd="M{left:.1f} {base:.1f}C{left + 2:.1f} {high:.1f} {right - 2:.1f} {high:.1f} {right:.1f} {base:.1f}">'
        f"<title>{escape(edge.piece)}: {edge.probability:.3f}</title></path>"
    )


def _visible(character: str) -> str:
    return "·" if character == " " else escape(character)


def _curves(stages: Sequence[Stage]) -> Figure | None:
    panels = []
    for name, key, title, label in (
        ("tokens-alpha", "bytes_per_token", "Bytes a token", "expected bytes a token"),
        ("entropy-alpha", "entropy_per_byte", "Entropy of the cut", "bits a byte"),
    ):
        series, rows = [], []
        for i, stage in enumerate(stages):
            points = _points(objects(stage.result.get("alphas")), key)
            if points:
                colour: Colour = i
                series.append(Series(stage.variant, points, colour))
                rows += [[stage.variant, x, y] for x, y in points]
        if series:
            said = "; ".join(f"{s.name} from {s.points[0][1]:.2f} to {s.points[-1][1]:.2f}" for s in series)
            body = line_chart(name, title, said, series, Axis("α"), Axis(label))
            panels.append(Panel(name, body, Table(["variant", "alpha", key], rows), title=title))
    if not panels:
        return None
    return Figure(
        "alpha",
        "What α does to the cut",
        "α = 0 takes every cut alike: many tokens, much chance. With α = 1 cuts have the model's own "
        "probabilities, and the larger α, the nearer to the best cut.",
        panels,
    )


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [
        (x, y)
        for r in rows
        if (x := finite(r.get("alpha"))) is not None and (y := finite(r.get(key))) is not None
    ]
