"""Small pictures of the distance Δ(i, j) at which each length-extension method lets query i see key j."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from lmlab.lab.report.chart import FULL, SMALL, Drawing, svg, text_width
from lmlab.lab.report.figure import Figure, Panel, Table
from lmlab.lab.report.read import Stage, array, get, objects
from lmlab.lab.report.text import escape, finite, listing, short, shorten, whole

CELLS = 32  # a picture's rows and columns
LONGEST = 2048  # positions; a longer context is drawn up to here
SHADES = ("0.30", "0.52", "0.74", "0.96")  # quarters of the trained length
UNSEEN = len(SHADES)  # a distance beyond it
Grid = tuple[tuple[int | None, ...], ...]  # shade of each cell; None: the key isn't seen


def settings(stage: Stage) -> tuple[int, float, set[str], list[Any]]:
    """(trained length, longest context, methods, their tables): all that the pictures depend on."""
    told = stage.result.get("length")
    contexts = [c for c in map(finite, array(get(told, "contexts"))) if c is not None]
    methods = {str(row.get("method")) for row in objects(get(told, "rows"))}
    tables = array(get(stage.settings, "evaluate", "length", "extensions"))
    return max(0, whole(get(told, "train_length")) or 0), max(contexts, default=0.0), methods, tables


def figure(stage: Stage, suffix: str, of: str) -> Figure | None:
    """The pictures of one evaluation; None where it tells no trained length or no methods."""
    trained, longest, methods, tables = settings(stage)
    length = int(min(LONGEST, longest))
    if not trained or not length:
        return None
    pictures: dict[Grid, list[str]] = {}
    rows = []
    for name, delta in _deltas(tables, trained, length).items():
        if name in methods:
            grid = tuple(tuple(_shade(d, trained) for d in line) for line in delta)
            pictures.setdefault(grid, []).append(name)
            rows += [
                [stage.variant, name, _place(i, length), _place(j, length), d]
                for i, line in enumerate(delta)
                for j, d in enumerate(line)
                if d is not None
            ]
    if not pictures:
        return None
    name = f"distances{suffix}"
    labelled = {listing(names): grid for grid, names in pictures.items()}
    body = Drawing(
        _draw(name, labelled, trained, length, FULL, 4),
        _draw(f"{name}-small", labelled, trained, length, SMALL, 2),
    )
    return Figure(
        name,
        f"What distance each method pretends{of}",
        f"Each square holds all pairs of a query (downwards) and an earlier key (to the right) among {short(length)} "
        "tokens: blue distances were seen in training, orange ones never, and keys left empty aren't looked at.",
        [Panel(name, body, Table(["variant", "method", "query", "key", "distance"], rows), wide=True)],
        '<p class="dim">A method that changes the frequencies of the rotation keeps the distances, so it has the same '
        "picture as none.</p>",
    )


def _deltas(tables: Sequence[Any], trained: int, length: int) -> dict[str, list[list[float | None]]]:
    """Method -> Δ at the middle of each cell, None where the key isn't attended."""
    from lmlab.lab.steps.evaluate import usable
    from lmlab.rope import Extension, Window, distances

    extensions = {"none": Extension(), "window": Extension((Window(trained),))}
    with suppress(KeyError, TypeError, ValueError):  # a run of another version may know other methods
        extensions |= usable("rope", tables)
    places = [_place(i, length) for i in range(CELLS)]
    found = {}
    for name, extension in extensions.items():
        delta = distances(extension, length, train_length=trained)[places][:, places].tolist()
        found[name] = [[None if math.isnan(d) else d for d in line] for line in delta]
    return found


def _place(cell: int, length: int) -> int:
    """The position in the middle of a cell."""
    return (2 * cell + 1) * length // (2 * CELLS)


def _shade(delta: float | None, trained: float) -> int | None:
    return None if delta is None else min(UNSEEN, int(delta * len(SHADES) / trained))


def _draw(
    name: str, pictures: Mapping[str, Grid], trained: float, length: int, width: int, columns: int
) -> str:
    gap, top, head = 24.0, 44.0 if width <= SMALL else 26.0, 20.0
    side = min(190.0, (width - gap * (columns - 1)) / columns)
    parts = _key(trained, width)
    for number, (label, grid) in enumerate(pictures.items()):
        x = (number % columns) * (side + gap)
        y = top + head + (number // columns) * (side + head + 12)
        size = side / CELLS
        fits = max(8, int(side / 7))
        parts.append(f'<text class="ink" x="{x:.1f}" y="{y - 7:.1f}">{escape(shorten(label, fits))}</text>')
        parts.append(f'<rect class="empty" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}"/>')
        for i, line in enumerate(grid):
            start = 0
            for shade, cells in groupby(line):
                count = len(list(cells))
                if shade is not None:
                    parts.append(_cells(shade, x + start * size, y + i * size, count * size, size))
                start += count
    lines = -(-len(pictures) // columns)
    description = f"{len(pictures)} pictures over {length} tokens: " + "; ".join(pictures)
    return svg(name, width, top + lines * (side + head + 12), "Distance by query and key", description, parts)


def _cells(shade: int, x: float, y: float, width: float, height: float) -> str:
    look = 'class="bar s1"' if shade == UNSEEN else f'class="cell" fill-opacity="{SHADES[shade]}"'
    return f'<rect {look} x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height + 0.3:.1f}"/>'


def _key(trained: float, width: int) -> list[str]:
    edges = [short(trained * (i + 1) / len(SHADES)) for i in range(len(SHADES))]
    names = [f"under {edges[0]}", *(f"to {e}" for e in edges[1:]), "further than trained"]
    parts, x, y = [], 0.0, 2.0
    for shade, label in enumerate(names):
        size = 22 + text_width(label)
        if x and x + size > width:
            x, y = 0.0, y + 18
        parts.append(_cells(shade, x, y, 14, 11))
        parts.append(f'<text class="dim" x="{x + 19:.1f}" y="{y + 10:.1f}">{escape(label)}</text>')
        x += size + 10
    return parts
