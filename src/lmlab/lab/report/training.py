"""How it learned: loss against tokens, the learning rate below, and what else was measured at each step."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmlab.lab.report.chart import FULL, Series, line_chart
from lmlab.lab.report.figure import Figure, Panel, Section, Table
from lmlab.lab.report.read import RunFiles, Stage, get, objects
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import escape, finite, listing, number, short, shorten, slug, whole

DRAWN = 400  # points of a line at most
MARGIN = 56.0  # one x axis for both charts
SMOOTH = 40  # the bold line is the mean over this share of the run
STEPS = 3  # so many runs are drawn with their single steps; more would hide each other
RISE = 0.01  # nats a token by which the held-out loss must have risen to be told
KNOWN = ("step", "tokens", "loss", "lr", "grad_norm", "held_out", "seed")
MEASURES = {
    "ce": "cross-entropy, nats a token",
    "emo": "EMO, cost a token",
    "accuracy": "accuracy, share of tokens",
    "alive": "codes in use, share",
    "relative_error": "relative error of quantised keys",
}


def findings(run: RunFiles) -> list[str]:
    """A run that went on after its best held-out loss."""
    said = []
    for stage in run.of("train"):
        curve = _points(stage, "held_out")
        if not curve:
            continue
        at, best = min(curve, key=lambda p: p[1])
        last = curve[-1][1]
        if last - best > RISE:
            said.append(
                f"Training of {escape(_label(stage, run))} went on too long: the held-out loss was lowest after "
                f"{short(at)} tokens ({number(best)}) and ends at {number(last)}."
            )
    return said


def trainings(run: RunFiles) -> list[Stage]:
    """Finished trainings, then those that are under way or were stopped: as far as the log tells."""
    done = run.of("train")
    known = {(s.variant, s.seed) for s in done}
    steps: dict[tuple[str, int | None], dict[int, Mapping[str, Any]]] = {}
    for line in run.log:
        if line.get("stage") != "train" or line.get("event") not in ("step", "resume"):
            continue
        step, seed = whole(line.get("step")), whole(line.get("seed"))
        if step is None:
            continue
        arm = str(line.get("variant") or "base"), seed
        resumed = line.get("event") == "resume"
        # What an earlier attempt made after the place where this one began is not a part of it.
        kept = {n: told for n, told in steps.get(arm, {}).items() if n < step or (resumed and n == step)}
        steps[arm] = kept if resumed else kept | {step: line}
    return done + [
        Stage("train", variant, seed, run.path, {"history": list(told.values())}, {}, None, False)
        for (variant, seed), told in steps.items()
        if (variant, seed) not in known and told
    ]


def section(run: RunFiles) -> Section:
    stages = [s for s in trainings(run) if _points(s, "loss")]
    if not stages:
        return Section("training", "How it learned", "No training has begun in this run yet.")
    names = list(dict.fromkeys(s.variant for s in stages))
    series: list[Series] = []
    rates: list[Series] = []
    losses: list[float] = []
    several = len(stages) > 1
    for stage in stages:
        colour = names.index(stage.variant)
        label = _label(stage, run)
        loss = _points(stage, "loss")
        if len(stages) <= STEPS:
            series.append(Series("", _thin(loss), colour, marks=False, faint=True))
        first = stage is _first(stages, stage.variant)  # the legend names each variant once
        called = [f"{stage.variant}: {kind}" if several else kind for kind in ("training", "held out")]
        bold = Series(called[0] * first, _thin(_smooth(loss)), colour, marks=False, dashed=several)
        series.append(bold)
        losses += [v for _, v in bold.points if v is not None]
        held_out = _points(stage, "held_out")
        if held_out:
            series.append(Series(called[1] * first, held_out, colour if several else colour + 1))
            losses += [v for _, v in held_out]
        rates.append(Series(label, _thin(_points(stage, "lr")), colour, marks=False))
    top = max(losses)
    name = "loss"
    x = Axis("tokens read", low=0.0)
    drawn = line_chart(
        name,
        "Loss against tokens read",
        f"{len(stages)} training runs; the last held-out losses are "
        + ", ".join(f"{_label(s, run)} {s.result.get('held_out_loss')}" for s in stages),
        [_capped(s, top) for s in series],
        x,
        Axis("nats a token"),
        width=FULL,
        height=330,
        margin=MARGIN,
    )
    rate = line_chart(
        "learning-rate",
        "Learning rate against tokens read",
        "The schedule: warm-up, then decay.",
        _unlike(rates),
        x,
        Axis("learning rate", low=0.0),
        width=FULL,
        height=170,
        margin=MARGIN,
    )
    columns = ["variant", "seed", "step", "tokens", "loss", "held_out", "lr", "grad_norm"]
    rows = [
        [s.variant, s.seed, *(h.get(c) for c in columns[2:])]
        for s in stages
        for h in objects(s.result.get("history"))
    ]
    table = Table(columns, rows)
    rate_table = Table(["variant", "seed", "tokens", "lr"], [[r[0], r[1], r[3], r[6]] for r in rows])
    note = _vocabularies(run)
    figure = Figure(
        "training",
        "Loss and learning rate",
        "The bold line is the smoothed training loss (thin: each step), marks are the loss on held-out text; "
        "where the two part, the model begins to learn its training text by heart.",
        [Panel(name, drawn, table, wide=True), Panel("learning-rate", rate, rate_table, wide=True)],
        note,
    )
    waiting = [_label(s, run) for s in stages if s not in run.of("train")]
    lead = (
        escape(f"Not finished yet: {listing(waiting)}; the steps so far are from the log.") if waiting else ""
    )
    return Section("training", "How it learned", lead, [f for f in (figure, _measures(stages)) if f])


def _measures(stages: Sequence[Stage]) -> Figure | None:
    """What the losses and mixers of this run measured at each step besides."""
    names = list(dict.fromkeys(s.variant for s in stages))
    keys = list(dict.fromkeys(k for s in stages for h in objects(s.result.get("history")) for k in h))
    panels = []
    for key in keys:
        lines = [(s, _points(s, key)) for s in stages]
        if key in KNOWN or all(_as_loss(s, key) for s in stages) or not any(points for _, points in lines):
            continue
        series = [
            Series(
                s.variant if s is _first(stages, s.variant) else "",
                _thin(_smooth(points)),
                names.index(s.variant),
                marks=False,
            )
            for s, points in lines
            if points
        ]
        label = MEASURES.get(key, key.replace("_", " "))
        name = f"training-{slug(key)}"
        drawn = line_chart(
            name,
            f"{label} against tokens read",
            "; ".join(f"{s.name} ends at {number(s.points[-1][1], 3)}" for s in series),
            series,
            Axis("tokens read", low=0.0),
            Axis(shorten(label, 48)),
        )
        rows = [[s.variant, s.seed, x, y] for s, points in lines for x, y in points]
        panels.append(Panel(name, drawn, Table(["variant", "seed", "tokens", key], rows)))
    if not panels:
        return None
    if len(panels) == 1:
        panels = [replace(panels[0], wide=True)]
    return Figure(
        "training-measures",
        "What else was measured at each step",
        "Smoothed as the loss is; these are measured on the training text, before each step.",
        panels,
    )


def _as_loss(stage: Stage, key: str) -> bool:
    """Whether a measure says nothing beyond the loss."""
    pairs = [(finite(h.get(key)), finite(h.get("loss"))) for h in objects(stage.result.get("history"))]
    return all(a is None or (b is not None and abs(a - b) <= 1e-4 * abs(b)) for a, b in pairs)


def _first(stages: Sequence[Stage], variant: str) -> Stage:
    return next(s for s in stages if s.variant == variant)


def _label(stage: Stage, run: RunFiles) -> str:
    seeds = {s.seed for s in run.of("train", stage.variant)}
    return stage.variant if len(seeds) < 2 else f"{stage.variant}, seed {stage.seed}"


def _vocabularies(run: RunFiles) -> str:
    sizes = {whole(get(s.result, "vocab_size")) for s in run.of("tokenize")}
    if len(sizes) < 2:
        return ""
    return (
        '<p class="dim">The variants have different tokenizers: a loss a token can\'t be compared between '
        "them, bits per byte can.</p>"
    )


def _points(stage: Stage, key: str) -> list[tuple[float, float]]:
    pairs = ((finite(h.get("tokens")), finite(h.get(key))) for h in objects(stage.result.get("history")))
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean over a window around each point that shrinks at both ends."""
    half = len(points) // (2 * SMOOTH)
    total = [0.0]
    for _, y in points:
        total.append(total[-1] + y)
    smooth = []
    for i, (x, _) in enumerate(points):
        room = min(half, i, len(points) - 1 - i)
        smooth.append((x, (total[i + room + 1] - total[i - room]) / (2 * room + 1)))
    return smooth


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every k-th point and the last."""
    step = -(-len(points) // DRAWN) or 1
    kept = list(points[::step])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _capped(series: Series, top: float) -> Series:
    """Single steps above every smoothed loss are drawn at the edge, so that one spike doesn't flatten all."""
    if series.name:
        return series
    points = [(x, None if y is None else min(y, top)) for x, y in series.points]
    return Series("", points, series.colour, marks=False, faint=True)


def _unlike(series: Sequence[Series]) -> list[Series]:
    """One line for each schedule: the same one many times says nothing."""
    kept: dict[tuple[object, ...], Series] = {}
    for s in series:
        kept.setdefault(tuple(s.points), s)
    return list(kept.values())
