"""Inside the model: the attention scale beside its theory, the heads that came out, codes, bytes of state."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lmlab.lab.report import solving
from lmlab.lab.report.chart import FULL, Rule, Series, line_chart
from lmlab.lab.report.figure import Figure, Panel, Section, Table, html_table
from lmlab.lab.report.read import RunFiles, Stage, get, mapping, mean, objects
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import amount, escape, finite, listing, number, percent, short, whole

KEYS = (64, 512, 4096, 16384)  # of the four drawings of the theory
ALPHAS = [k / 5 for k in range(1, 31)]
WIDEST, MOST_KEYS = 64.0, 10**9  # where the curve of normal logits is computed
DRAWS = 1 << 18  # normal numbers for a median row
RULES: tuple[Literal["annealed", "typical", "share"], ...] = ("annealed", "typical", "share")
HELP = 0.005  # nats a token by which far codes must lower the loss to be called of use


def findings(run: RunFiles) -> list[str]:
    """Whether quantised far keys are of use."""
    said = []
    for stage in _first_seeds(run):
        codes = mapping(get(stage.result, "inside", "codes"))
        full, local = finite(codes.get("loss")), finite(codes.get("local_loss"))
        if full is None or local is None:
            continue
        gain = local - full
        use = (
            f"lower its loss by {number(gain, 3)} nats a token"
            if gain > HELP
            else (
                "are of no use to it: without them its loss is "
                f"{number(abs(gain), 3)} nats a token {'higher' if gain >= 0 else 'lower'}"
            )
        )
        said.append(escape(f"The codes beyond the window of {stage.variant} {use}."))
    return said


def section(run: RunFiles) -> Section | None:
    stages = _first_seeds(run)
    figures = [
        _theory() if any(_scale(run, s.variant) is not None for s in stages) else None,
        _heads(stages),
        _entropy(run, stages),
        _codes(stages),
        _sweeps(stages),
        *solving.figures(stages),
        _state(stages),
    ]
    found = [f for f in figures if f]
    if not found:
        return None
    return Section("inside", "Inside the model", "", found)


def _first_seeds(run: RunFiles) -> list[Stage]:
    """Each variant's first seed, of those that were looked into."""
    found: dict[str, Stage] = {}
    for stage in run.of("evaluate"):
        if mapping(stage.result.get("inside")):
            found.setdefault(stage.variant, stage)
    return list(found.values())


def _scale(run: RunFiles, variant: str) -> Any:
    return next((get(s.settings, "model", "attention", "scale") for s in run.of("train", variant)), None)


# --- the theory ---------------------------------------------------------------------------------------------


def _theory() -> Figure:
    """The measure of a row of n normal logits against the factor on them."""
    from lmlab.attention import GradientScale, attention_scale, gradient_limit, gradient_norm

    panels = []
    for n in KEYS:
        exact = [(a, gradient_norm(a, n)) for a in ALPHAS]
        annealed = [(a, gradient_norm(a, n, form="annealed")) for a in ALPHAS]
        limit = float(gradient_limit(n))
        median = list(zip(ALPHAS, median_row(n), strict=True))
        series = [
            Series("mean, exact", exact, 0, marks=False),
            Series("annealed", [(a, y if y >= 0 else None) for a, y in annealed], 1, marks=False),
            Series("row median", median, 2, marks=False, dashed=True),
        ]
        marks: list[tuple[str, float, float]] = []
        for i, form in enumerate(RULES):
            alpha = float(attention_scale(n, rule=GradientScale(form)))
            marks.append((form, alpha, gradient_norm(alpha, n)))
            series.append(Series(f"{form} rule", [(alpha, marks[-1][2])], i + 3))
        series.append(Series("1/√d", [(1.0, gradient_norm(1.0, n))], 6))
        name = f"scale-theory-{n}"
        table = Table(
            ["alpha", "exact", "annealed", "row_median", "limit"],
            [
                [a, x[1], y[1], m[1], limit]
                for a, x, y, m in zip(ALPHAS, exact, annealed, median, strict=True)
            ],
        )
        drawn = line_chart(
            name,
            f"Gradient measure against the attention scale, {n} keys",
            f"Limit {limit:.3f}; " + "; ".join(f"{form} at {a:.2f}: {y:.2f}" for form, a, y in marks),
            series,
            Axis("α, factor on logits of unit variance", 0.0),
            Axis("α (1 − Σ p²)", low=0.0),
            rules=[Rule("y", limit, "limit")],
        )
        panels.append(Panel(name, drawn, table, title=f"{short(n)} keys"))
    return Figure(
        "scale-theory",
        "What the attention scale does to the gradient",
        "How much gradient a row of normal logits lets through. The exact mean rises all the way to its limit: "
        "only the annealed approximation, which the rule of that name maximises, has a summit; the median row "
        "is frozen for a large α.",
        panels,
    )


def median_row(n: int) -> list[float]:
    """The median over rows of alpha (1 - sum p^2) at each of ALPHAS, by draws that are the same every time."""
    logits = np.random.Generator(np.random.Philox(n)).standard_normal(
        (max(8, DRAWS // n), n), dtype=np.float32
    )
    logits -= logits.max(1, keepdims=True)
    found = []
    for alpha in ALPHAS:
        weights = np.exp(alpha * logits)
        share = np.square(weights).sum(1, dtype=np.float64) / np.square(weights.sum(1, dtype=np.float64))
        found.append(float(np.median(alpha * (1 - share))))
    return found


# --- the trained heads --------------------------------------------------------------------------------------


def _heads(stages: Sequence[Stage]) -> Figure | None:
    panels = []
    several = len(stages) > 1
    for i, stage in enumerate(stages):
        heads = objects(get(stage.result, "inside", "heads"))
        keys = whole(get(stage.result, "inside", "keys"))
        layers: dict[int, list[tuple[float, float | None]]] = {}
        for head in heads:
            alpha, measure = finite(head.get("alpha")), finite(head.get("measure"))
            if alpha is not None:  # a gap after each: heads are points, not a line
                layers.setdefault(whole(head.get("layer")) or 0, []).extend([(alpha, measure), (alpha, None)])
        if not layers or keys is None or not 2 <= keys <= MOST_KEYS:
            continue
        from lmlab.attention import gradient_limit, gradient_norm

        widest = max([2.0, *(a for points in layers.values() for a, _ in points)])
        grid = [min(widest, WIDEST) * k / 40 for k in range(41)]
        curve = Series("normal logits", [(a, gradient_norm(a, keys)) for a in grid], "grey", marks=False)
        series = [curve, *(Series(f"layer {n + 1}", points, n) for n, points in sorted(layers.items()))]
        name = f"heads-{i + 1}" if several else "heads"
        drawn = line_chart(
            name,
            f"Gradient measure of the trained heads{f' ({stage.variant})' if several else ''}",
            f"{len(heads)} heads of {len(layers)} layers, beside the curve of normal logits for {keys:g} keys.",
            series,
            Axis("α, standard deviation of a row's logits", 0.0),
            Axis("α (1 − Σ p²)", low=0.0),
            rules=[Rule("y", float(gradient_limit(keys)), "limit")],
        )
        columns = ["variant", "layer", "head", "alpha", "measure", "entropy"]
        rows = [[stage.variant, *(h.get(k) for k in columns[1:])] for h in heads]
        panels.append(Panel(name, drawn, Table(columns, rows), title=stage.variant if several else ""))
    if not panels:
        return None
    if len(panels) == 1:
        panels = [Panel(panels[0].name, panels[0].body, panels[0].table, panels[0].title, wide=True)]
    return Figure(
        "heads",
        "Where the trained heads lie",
        "One mark a head, means over held-out rows; the grey curve is where normal logits would be. A head above "
        "it has few strong keys among many, one below it has frozen onto a key, one far to the left looks "
        "everywhere alike.",
        panels,
    )


def _entropy(run: RunFiles, stages: Sequence[Stage]) -> Figure | None:
    """Means over heads and seeds, layer by layer."""
    series, numbers = [], []
    for i, stage in enumerate(stages):
        layers: dict[int, list[Any]] = {}
        for one in run.of("evaluate", stage.variant):
            for head in objects(get(one.result, "inside", "heads")):
                layers.setdefault((whole(head.get("layer")) or 0) + 1, []).append(head.get("entropy"))
        points = [(float(layer), mean(values)) for layer, values in sorted(layers.items())]
        numbers += [[stage.variant, layer, value] for layer, value in points]
        if points:
            series.append(Series(stage.variant, points, i % 8, dashed=i >= 8))
    depth = [x for s in series for x, _ in s.points]
    if len(series) < 2 or max(depth) < 2:
        return None
    drawn = line_chart(
        "entropy",
        "Entropy of attention by layer",
        "; ".join(f"{s.name}: {', '.join(number(y) for _, y in s.points)}" for s in series),
        series,
        Axis("layer", at=sorted(set(depth)), form=lambda x: f"{x:g}"),
        Axis("entropy, share of ln n", 0.0, 1.0),
        width=FULL,
        height=280,
    )
    return Figure(
        "entropy",
        "How widely attention is spread",
        "Mean entropy of a row's weights over all heads and seeds: 1 is a plain mean over everything before, 0 "
        "is one single token.",
        [Panel("entropy", drawn, Table(["variant", "layer", "entropy"], numbers), wide=True)],
    )


# --- quantised keys, state ----------------------------------------------------------------------------------


def _codes(stages: Sequence[Stage]) -> Figure | None:
    rows, numbers = [], []
    for stage in stages:
        codes = mapping(get(stage.result, "inside", "codes"))
        for layer in objects(codes.get("layers")):
            keys = ("codes", "alive", "perplexity", "relative_error")
            told = [layer.get(k) for k in keys]
            place = (finite(layer.get("layer")) or 0) + 1
            rows.append(
                [
                    f"{escape(stage.variant)}, layer {place:g}",
                    amount(told[0]),
                    percent(told[1]),
                    number(told[2], 1),
                    percent(told[3]),
                ]
            )
            numbers.append([stage.variant, place, *told, codes.get("loss"), codes.get("local_loss")])
    if not rows:
        return None
    losses = [
        f"{s.variant}: {number(get(s.result, 'inside', 'codes', 'loss'), 3)} with all codes, "
        f"{number(get(s.result, 'inside', 'codes', 'local_loss'), 3)} with none beyond the window"
        for s in stages
        if get(s.result, "inside", "codes")
    ]
    columns = ["variant", "layer", "codes", "alive", "perplexity", "relative_error", "loss", "local_loss"]
    body = html_table(["layer", "codes", "alive", "perplexity", "relative error of keys"], rows)
    return Figure(
        "codes",
        "Health of the codebooks",
        "Alive: share of codes that are used; perplexity: as how many equally used codes they count; relative "
        "error: what quantisation takes from held-out keys. The control is the loss without the far codes.",
        [Panel("codes", body, Table(columns, numbers), wide=True)],
        f'<p class="dim">Loss in nats a token. {escape(listing(losses))}.</p>',
    )


def _sweeps(stages: Sequence[Stage]) -> Figure | None:
    """The error of each parallel method sweep by sweep, and how far the states are exact already."""
    panels = []
    for i, stage in enumerate(stages):
        for told in objects(get(stage.result, "inside", "recurrent")):
            place = (finite(told.get("layer")) or 0) + 1
            lines: dict[str, list[Mapping[str, Any]]] = {}
            for row in objects(told.get("sweeps")):
                lines.setdefault(str(row.get("method")), []).append(row)
            if not lines:
                continue
            of = f"{stage.variant}, layer {place:g}"
            about = f"{of}: exponent {number(told.get('exponent'))}, {told.get('verdict')}"
            table = Table(
                ["variant", "layer", "method", "iteration", "error", "exact_prefix"],
                [
                    [stage.variant, place, m, *(r.get(k) for k in ("iteration", "error", "exact_prefix"))]
                    for m, rows in lines.items()
                    for r in rows
                ],
            )
            for kind, label, log in (
                ("error", "largest error of a state", True),
                ("exact_prefix", "steps from the first that are exact", False),
            ):
                name = f"sweeps-{i + 1}-{place:g}-{kind.replace('_', '-')}"
                series = [
                    Series(m, [p for r in rows if (p := _point(r, kind, log))], n, marks=False)
                    for n, (m, rows) in enumerate(lines.items())
                ]
                drawn = line_chart(
                    name,
                    f"{label} against sweeps ({of})",
                    "; ".join(f"{m} ends at {amount(rows[-1].get(kind))}" for m, rows in lines.items()),
                    series,
                    Axis("sweep over the whole text", 0.0),
                    Axis(label, log=log, low=None if log else 0.0),
                )
                panels.append(Panel(name, drawn, table, title=about if log else ""))
    if not panels:
        return None
    return Figure(
        "sweeps",
        "Can the trained cell be solved for all steps at once?",
        "Each method improves all states in each sweep. Jacobi's exact stretch grows a step a sweep, Newton's "
        "leaps; a negative Lyapunov exponent says that mistakes die out and that Newton ends in a few sweeps.",
        panels,
    )


def _point(row: Mapping[str, Any], key: str, positive: bool) -> tuple[float, float | None] | None:
    x, y = finite(row.get("iteration")), finite(row.get(key))
    return None if x is None or (positive and (y is None or y <= 0)) else (x, y)


def _state(stages: Sequence[Stage]) -> Figure | None:
    series, numbers = [], []
    for i, stage in enumerate(stages):
        rows = objects(get(stage.result, "inside", "state"))
        points = [(x, finite(r.get("bytes"))) for r in rows if (x := finite(r.get("length"))) is not None]
        numbers += [[stage.variant, x, y] for x, y in points]
        if points:
            series.append(Series(stage.variant, points, i))
    if len({tuple(s.points) for s in series}) < 2:
        return None  # all alike: nothing to compare
    ticks = sorted({x for s in series for x, _ in s.points})
    drawn = line_chart(
        "state",
        "Bytes of state against length",
        "; ".join(f"{s.name} ends at {amount(s.points[-1][1])} bytes" for s in series),
        series,
        Axis("tokens read", log=True, at=ticks),
        Axis("bytes of one sequence's state", log=True),
        width=FULL,
        height=280,
    )
    return Figure(
        "state",
        "What a longer text costs in memory",
        "The state that generation carries from token to token: a cache of keys grows with the text, codes and "
        "recurrent states don't.",
        [Panel("state", drawn, Table(["variant", "length", "bytes"], numbers), wide=True)],
    )
