"""Fed on its own text: quality and diversity by generation, and the collapse of a covariance."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from lmlab.lab.report import against, generations, plateau
from lmlab.lab.report.chart import HALF, Colour, Series, line_chart
from lmlab.lab.report.figure import Figure, Panel, Section, Table
from lmlab.lab.report.read import RunFiles, Stage, array, get, mapping, objects
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import escape, finite, listing, number, slug

# Metric -> what its axis says. Quality stands on the left, diversity beside it.
QUALITY = {
    "bits_per_byte": "bits per byte of real text (lower is better)",
    "mauve": "MAUVE (higher is better)",
    "frechet": "Fréchet distance (lower is better)",
    "w2": "Wasserstein-2 distance (lower is better)",
    "precision": "precision (higher is better)",
    "density": "density (higher is better)",
    "mean_square": "mean square (lower is better)",
}
DIVERSITY = {
    "distinct": "distinct {}-grams, share (lower is poorer)",
    "entropy": "entropy of {}-grams, bits (lower is poorer)",
    "self_bleu": "self-BLEU (higher is poorer)",
    "tail_coverage": "rare items still made, share (lower is poorer)",
    "recall": "recall (lower is poorer)",
    "coverage": "coverage (lower is poorer)",
    "log_det": "log determinant of the covariance (lower is poorer)",
}
GENERATORS = {
    "gaussian": "A Gaussian",
    "mixture": "A Gaussian mixture",
    "kde": "A kernel density",
    "ngram": "An n-gram model",
    "decoder": "A decoder",
    "diffusion": "A diffusion model",
}
SIGMAS = 2.0
CORNERS = 72
NAMED = 4  # more controls than these share one entry of the legend


def findings(run: RunFiles) -> list[str]:
    """The loop whose first quality measure moved most, with what became of diversity beside it."""
    for stage in run.of("autophagy"):
        arms = [a for a in objects(stage.result.get("arms")) if not a.get("control")]
        metrics = list(dict.fromkeys(m for arm in arms for m in mapping(arm.get("metrics"))))
        shown = [m for kind in (True, False) for m in [m for m in metrics if (m in QUALITY) == kind][:1]]
        moved = [
            (abs(ends[1] - ends[0]), i) for i, a in enumerate(arms) if shown and (ends := _ends(a, shown[0]))
        ]
        if len(shown) < 2 or not moved:
            continue
        index = max(moved)[1]
        changes = [
            f"{_axis(metric).split(' (')[0].split(', ')[0]} went from {number(ends[0])} to {number(ends[1])}"
            for metric in shown
            if (ends := _ends(arms[index], metric))
        ]
        last = max(
            (g for g in map(finite, array(arms[index].get("generations"))) if g is not None), default=0
        )
        name = re.sub(r" \(n = .*", "", _labels(arms)[index][0])
        return [
            escape(
                f"{_who(stage)} fed on its own output for {last:g} generations ({name}): {listing(changes)}."
            )
        ]
    return []


def _who(stage: Stage) -> str:
    generator = get(stage.settings, "autophagy", "generator")
    return GENERATORS.get(str(generator), f"The generator {generator}") if generator else "A generator"


def _ends(arm: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """The first and the last mean of a metric."""
    known = [v for v in map(finite, array(get(arm, "metrics", metric, "mean"))) if v is not None]
    return (known[0], known[-1]) if len(known) > 1 else None


def section(run: RunFiles) -> Section:
    stages = list({s.directory: s for s in run.of("autophagy")}.values())
    figures: list[Figure] = []
    for i, stage in enumerate(stages):
        suffix = f"-{i + 1}" if len(stages) > 1 else ""
        of = f" ({stage.variant})" if len(stages) > 1 else ""
        arms = objects(stage.result.get("arms"))
        labels = _labels(arms)
        metrics = list(dict.fromkeys(m for arm in arms for m in mapping(arm.get("metrics"))))
        found = [
            _loops(arms, suffix, of),
            against.figure(arms, metrics, [name for name, _, _ in labels], suffix, of),
            _path(arms, suffix, of),
            generations.modes(arms, labels, suffix, of),
            generations.figure(arms, labels, mapping(stage.result.get("real")), suffix, of),
            plateau.phase_map(objects(stage.result.get("phase")), suffix, of),
            plateau.memory(objects(stage.result.get("memory")), suffix, of),
            _collapse(mapping(stage.result.get("collapse")), suffix, of),
        ]
        figures += [f for f in found if f]
    who = listing(list(dict.fromkeys(_who(s) for s in stages)))
    lead = (
        escape(f"{who}, trained on what it made itself.")
        if figures
        else "No loop ran: the recipe has no <code>[autophagy]</code>, or it isn't done."
    )
    return Section("autophagy", "Fed on its own text", lead, figures)


def _loops(arms: Sequence[Mapping[str, Any]], suffix: str, of: str) -> Figure | None:
    metrics = list(dict.fromkeys(m for arm in arms for m in mapping(arm.get("metrics"))))
    quality = [m for m in metrics if m in QUALITY]
    diversity = [m for m in metrics if m not in QUALITY]
    if not metrics:
        return None
    if not diversity:
        said = listing([escape(m) for m in quality])
        return Figure(
            f"loops{suffix}",
            f"Quality by generation{of}",
            "Not drawn: quality without diversity says too little.",
            [],
            f"<p>The recipe measured {said}, and no diversity; add distinct_4 or entropy_3, say.</p>",
        )
    pairs = chain.from_iterable(zip_longest(quality, diversity))
    panels = [_panel(arms, metric, suffix, of) for metric in pairs if metric is not None]
    return Figure(
        f"loops{suffix}",
        f"Quality and diversity, generation by generation{of}",
        "One line a loop (mean over seeds, band ± 2 standard errors), the control that sees only real text "
        "in grey; look at both kinds of panel, since a loop may look well in one and rot in the other.",
        panels,
    )


def _panel(arms: Sequence[Mapping[str, Any]], metric: str, suffix: str, of: str) -> Panel:
    series, rows = [], []
    labels = _labels(arms)
    for arm, (label, colour, shape) in zip(arms, labels, strict=True):
        means = array(get(arm, "metrics", metric, "mean"))
        errors = array(get(arm, "metrics", metric, "sem"))
        points, band = [], []
        for t, value, error in zip_longest(array(arm.get("generations"))[: len(means)], means, errors):
            x, y, e = finite(t), finite(value), finite(error)
            if x is None:
                continue
            points.append((x, y))
            if y is not None and e is not None:
                band.append((x, y - 2 * e, y + 2 * e))
            rows.append([arm.get("loop"), arm.get("bias"), arm.get("control"), x, y, e, arm.get("seeds")])
        if points:
            series.append(Series(label, points, colour, band, dashed=colour == "grey", shape=shape))
    name = f"loops{suffix}-{slug(metric)}"
    label = _axis(metric)
    ticks = sorted({x for s in series for x, _ in s.points})
    body = line_chart(
        name,
        f"{label} by generation{of}",
        "; ".join(f"{s.name}: {', '.join(number(y, 3) for _, y in s.points)}" for s in series if s.name),
        series,
        Axis("generation", at=ticks if len(ticks) <= 12 else None, form=lambda x: f"{x:g}"),
        Axis(label),
        width=HALF,
    )
    columns = ["loop", "bias", "control", "generation", "mean", "sem", "seeds"]
    return Panel(name, body, Table(columns, rows))


def _labels(arms: Sequence[Mapping[str, Any]]) -> list[tuple[str, Colour, int]]:
    """A name for each arm that tells it from the others, a colour and a shape; controls are grey."""
    controls = sum(bool(a.get("control")) for a in arms)
    biased = {
        kind: len({finite(a.get("bias")) for a in arms if bool(a.get("control")) == kind}) > 1
        for kind in (0, 1)
    }
    found: list[tuple[str, Colour, int]] = []
    count = control = 0
    for arm in arms:
        name, grey = str(arm.get("loop")), bool(arm.get("control"))
        if grey:
            name = f"control of {name}" if controls > 1 else "control"
        if biased[grey]:
            name += f", λ = {number(arm.get('bias'), 1)}"
        name += f" (n = {arm.get('seeds')})"
        if grey and controls > NAMED:  # one entry for all of them; each one's numbers are in the file
            name = "" if control else f"controls (n = {arm.get('seeds')})"
        found.append((name, "grey" if grey else count, control if grey else count))
        count, control = count + (not grey), control + grey
    return found


def _axis(metric: str) -> str:
    if metric in QUALITY:
        return QUALITY[metric]
    stem, _, order = metric.rpartition("_")
    if stem in DIVERSITY and order.isdigit():
        return DIVERSITY[stem].format(order)
    return DIVERSITY.get(metric, metric)


def _path(arms: Sequence[Mapping[str, Any]], suffix: str, of: str) -> Figure | None:
    series, rows = [], []
    for arm, (label, colour, shape) in zip(arms, _labels(arms), strict=True):
        recall, precision = (array(get(arm, "metrics", m, "mean")) for m in ("recall", "precision"))
        points = [
            (x, y)
            for a, b in zip(recall, precision, strict=False)
            if (x := finite(a)) is not None and (y := finite(b)) is not None
        ]
        if points:
            series.append(Series(label, points, colour, dashed=colour == "grey", shape=shape))
            rows += [[arm.get("loop"), arm.get("bias"), i + 1, *p] for i, p in enumerate(points)]
    if not series:
        return None
    name = f"quality-diversity{suffix}"
    body = line_chart(
        name,
        f"Precision against recall{of}",
        "; ".join(f"{s.name} ends at {s.points[-1]}" for s in series if s.name),
        series,
        Axis("recall (diversity)", 0, 1),
        Axis("precision (quality)", 0, 1),
        width=HALF,
    )
    return Figure(
        name,
        f"The path through quality and diversity{of}",
        "Each line walks through the generations; to the left diversity is lost, downwards quality.",
        [Panel(name, body, Table(["loop", "bias", "generation", "recall", "precision"], rows))],
    )


def _collapse(told: Mapping[str, Any], suffix: str, of: str) -> Figure | None:
    panels = [p for p in (_log_det(told, suffix, of), _ellipses(told, suffix, of)) if p]
    if not panels:
        return None
    return Figure(
        f"collapse{suffix}",
        f"How a Gaussian collapses{of}",
        "A Gaussian fitted again and again to its own samples: the log determinant of its covariance drifts "
        "down inside the band of theory (grey: mean ± 2 standard deviations), and its ellipse shrinks.",
        panels,
    )


def _log_det(told: Mapping[str, Any], suffix: str, of: str) -> Panel | None:
    log_det = mapping(told.get("log_det"))
    keys = ["mean", "low", "high", "theory_mean", "theory_sd"]
    rows = [
        [finite(v) for v in row]
        for row in zip_longest(array(told.get("generations")), *(array(log_det.get(k)) for k in keys))
    ]
    rows = [row for row in rows if row[0] is not None]
    if not rows:
        return None
    theory = [(t, m, s) for t, _, _, _, m, s in rows if t is not None and m is not None]
    seen = [(t, low, high) for t, _, low, high, _, _ in rows if None not in (t, low, high)]
    series = [
        Series(
            "theory",
            [(t, m) for t, m, _ in theory],
            "grey",
            [(t, m - 2 * s, m + 2 * s) for t, m, s in theory if s is not None],
            marks=False,
            dashed=True,
        ),
        Series(
            "runs: mean and spread",
            [(t, m) for t, m, *_ in rows if t is not None],
            0,
            [
                (t, low, high)
                for t, low, high in seen
                if t is not None and low is not None and high is not None
            ],
            marks=False,
        ),
    ]
    name = f"log-det{suffix}"
    body = line_chart(
        name,
        f"Log determinant of the covariance by generation{of}",
        f"Mean {number(rows[0][1])} at the start and {number(rows[-1][1])} at the end; theory "
        f"{number(rows[-1][4])}.",
        [s for s in series if s.points],
        Axis("generation"),
        Axis("log determinant"),
        height=340,
    )
    return Panel(name, body, Table(["generation", *keys], rows))


def _ellipses(told: Mapping[str, Any], suffix: str, of: str) -> Panel | None:
    series, rows = [], []
    for i, ellipse in enumerate(objects(told.get("ellipses"))):
        cov = [[finite(v) for v in array(row)] for row in array(ellipse.get("cov"))]
        centre = [finite(v) for v in array(ellipse.get("mean"))] or [0.0, 0.0]
        flat = [*chain.from_iterable(cov), *centre]
        if [len(r) for r in cov] != [2, 2] or len(centre) != 2:
            continue
        numbers = [v for v in flat if v is not None]
        if len(numbers) < 6:
            continue
        a, b, _, d, x, y = numbers
        series.append(Series(f"t = {ellipse.get('generation')}", _ellipse(a, b, d, x, y), i, marks=False))
        rows.append([ellipse.get("generation"), a, b, d, x, y])
    if not series:
        return None
    name = f"ellipses{suffix}"
    reach = max(abs(v) for s in series for p in s.points for v in p if v is not None) or 1.0
    body = line_chart(
        name,
        f"The Gaussian's ellipse of two standard deviations by generation{of}",
        f"{len(series)} ellipses, from t = {rows[0][0]} to t = {rows[-1][0]}.",
        series,
        Axis("first coordinate", -reach, reach),
        Axis("second coordinate", -reach, reach),
        square=True,
        width=HALF - 100,
    )
    return Panel(name, body, Table(["generation", "var_x", "cov_xy", "var_y", "mean_x", "mean_y"], rows))


def _ellipse(a: float, b: float, d: float, x: float, y: float) -> list[tuple[float, float | None]]:
    """The curve of SIGMAS standard deviations of [[a, b], [b, d]], through the Cholesky factor."""
    l11 = math.sqrt(max(a, 0.0))
    l21 = b / l11 if l11 else 0.0
    l22 = math.sqrt(max(d - l21 * l21, 0.0))
    points: list[tuple[float, float | None]] = []
    for i in range(CORNERS + 1):
        angle = 2 * math.pi * i / CORNERS
        u, v = SIGMAS * math.cos(angle), SIGMAS * math.sin(angle)
        points.append((x + l11 * u, y + l21 * u + l22 * v))
    return points
