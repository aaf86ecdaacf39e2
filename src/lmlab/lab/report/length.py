"""Longer than it was trained on: loss against context and position, and the passkey test."""

import math
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from lmlab.lab.report import distances
from lmlab.lab.report.chart import FULL, Colour, Rule, Series, heat_map, line_chart
from lmlab.lab.report.figure import Figure, Panel, Section, Table, html_table
from lmlab.lab.report.read import RunFiles, Stage, array, get, mapping, mean, objects
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import amount, escape, finite, number, percent, short, signed

USE = 0.005  # nats a token by which a method must beat the window to be called of use


def findings(run: RunFiles) -> list[str]:
    """Whether any method makes use of more context than a window does."""
    if study(run) is not None:
        return []  # the verdict says it
    stages = _first_seeds(run)
    found = [(s, best) for s in stages if (best := _best(mapping(s.result.get("length"))))]
    said = [_said(s, method, gap, f"{s.variant}: " * (len(stages) > 1)) for s, (method, gap) in found]
    if len(found) <= 2:
        return said
    won = sum(gap < -USE for _, (_, gap) in found)
    lead = min(range(len(found)), key=lambda i: found[i][1][1])
    return [f"In {won} of {len(found)} variants some method beats a plain window.", said[lead]]


def _best(told: Mapping[str, Any]) -> tuple[str, float] | None:
    """The method that stands best against the window at the longest context, and how far it is above it."""
    trained, longest = finite(told.get("train_length")), _longest(told)
    if not trained or longest <= trained:
        return None
    over = _over_window(told)
    methods = [m for m in over if m not in ("none", "window")]
    return min(((m, over[m]) for m in methods), key=lambda pair: pair[1], default=None)


def _said(stage: Stage, best: str, gap: float, of: str) -> str:
    told = mapping(stage.result.get("length"))
    longest, plain = _longest(told), _over_window(told).get("none")
    where = f"At {short(longest)} tokens, {longest / told['train_length']:.3g} times the trained length,"
    won = gap < -USE
    result = f"{best} is" if won else f"a plain window wins: the best method, {best}, is"
    against = "a plain window" if won else "it"
    gain = {str(r.get("method")): finite(r.get("gain")) for r in objects(told.get("rows"))}.get(best)
    if won and gain is not None and gain < USE:
        against += ", but not by reading more, as its loss doesn't fall with the context"
    nothing = f" (the model as it is: {_apart(plain)})" if plain is not None else ""
    return escape(f"{of}{where} {result} {_apart(gap)} {against}{nothing}.")


def _longest(told: Mapping[str, Any]) -> float:
    return max((c for c in map(finite, array(told.get("contexts"))) if c is not None), default=0.0)


def _over_window(told: Mapping[str, Any]) -> dict[str, float]:
    return {
        str(row.get("method")): value
        for row in objects(told.get("rows"))
        if (value := finite(row.get("over_window"))) is not None
    }


def _apart(value: float) -> str:
    return f"{number(abs(value), 3)} nats a token {'below' if value < 0 else 'above'}"


def section(run: RunFiles) -> Section:
    variants = _first_seeds(run)
    figures = [f for f in (_variants(run, variants),) if f]
    asked = study(run) is not None  # its table stands at the top of the report
    settings = [distances.settings(stage) for stage in variants]  # equal ones give one picture
    for i, stage in enumerate(variants):
        variant, result = stage.variant, stage.result
        suffix = f"-{i + 1}" if len(variants) > 1 else ""
        of = f" ({variant})" if len(variants) > 1 else ""
        told = mapping(result.get("length"))
        if len(variants) > 1 and set(_methods(told)) <= {"none", "window"} and not result.get("passkey"):
            continue  # the drawing of all variants has it
        found = [
            _context(told, suffix, of, variant),
            _position(told, suffix, of, variant),
            _copies(told, suffix, of, variant),
            None if asked else _table(run.of("evaluate", variant), suffix, of),
            distances.figure(stage, suffix, of) if settings[i] not in settings[:i] else None,
            _passkey(objects(result.get("passkey")), suffix, of, variant),
        ]
        figures += [f for f in found if f]
    lead = (
        ""
        if figures
        else "No length test ran: the recipe has no <code>[evaluate.length]</code>, or it isn't done."
    )
    return Section("length", "Longer than it was trained on", lead, figures)


def study(run: RunFiles) -> Stage | None:
    """The evaluation of a run whose question is length: one model, and texts that ask for what lies far back."""
    stages = _first_seeds(run)
    asked = len(stages) == 1 and objects(get(stages[0].result, "length", "copy"))
    return stages[0] if asked else None


def answer(run: RunFiles) -> Figure | None:
    """The table that answers the question of such a run."""
    stage = study(run)
    return None if stage is None else _table(run.of("evaluate", stage.variant), "", "")


def verdict(run: RunFiles) -> str | None:
    """Its answer in a sentence, as HTML."""
    stage = study(run)
    if stage is None:
        return None
    stages = run.of("evaluate", stage.variant)
    told = mapping(stage.result.get("length"))
    methods = [m for m in _methods(told) if m not in ("none", "window")]
    certain: list[tuple[str, float]] = []
    for method in methods:
        over, error = mean([_row(s, method).get("over_window") for s in stages]), _error(stages, method)
        if over is not None and over < -max(USE, error or 0.0):
            certain.append((method, over))
    times = _longest(told) / (finite(told.get("train_length")) or 1.0)
    many = "one seed" if len(stages) == 1 else f"{len(stages)} seeds"
    where = f"At {short(_longest(told))} tokens, {times:.3g} times the trained length ({many}),"
    if not certain:
        return f"{where} <strong>no method of {len(methods)} does better than a plain window</strong>."
    best, over = min(certain, key=lambda pair: pair[1])
    copy, plain = (mean([_copy_at(s, m) for s in stages]) for m in (best, "window"))
    copies = (
        f" and copies {percent(copy)} right where the window copies {percent(plain)}"
        if copy is not None
        else ""
    )
    return (
        f"{where} <strong>{len(certain)} of {len(methods)} methods beat a plain window</strong>; the best, "
        f"{escape(best)}, is {_apart(over)} it{copies}."
    )


def _first_seeds(run: RunFiles) -> list[Stage]:
    """Each variant's first seed, of those with a length test."""
    found: dict[str, Stage] = {}
    for stage in run.of("evaluate"):
        if mapping(stage.result.get("length")) or objects(stage.result.get("passkey")):
            found.setdefault(stage.variant, stage)
    return list(found.values())


def _colours(methods: Sequence[str]) -> dict[str, Colour]:
    """The window is grey everywhere; the others keep their colour from figure to figure."""
    others = [m for m in methods if m != "window"]
    return {m: others.index(m) for m in others} | {"window": "grey"}


def _methods(told: Mapping[str, Any]) -> list[str]:
    rows = [*objects(told.get("rows")), *objects(told.get("by_position"))]
    return list(dict.fromkeys(str(r.get("method")) for r in rows))


def _trained(told: Mapping[str, Any]) -> list[Rule]:
    length = finite(told.get("train_length"))
    return [] if length is None else [Rule("x", length, f"trained on {length:g} tokens")]


def _variants(run: RunFiles, variants: Sequence[Stage]) -> Figure | None:
    """Variant beside variant, each as it was trained: means over the seeds."""
    if len(variants) < 2:
        return None
    series, numbers = [], []
    for i, variant in enumerate(variants):
        by_context: dict[float, list[float]] = {}
        for stage in run.of("evaluate", variant.variant):
            for told in objects(_row(stage, "none").get("losses")):
                x, y = finite(told.get("context")), finite(told.get("loss"))
                if x is not None and y is not None:
                    by_context.setdefault(x, []).append(y)
                    numbers.append([variant.variant, stage.seed, x, y])
        points = [(x, mean(values)) for x, values in sorted(by_context.items())]
        errors = {x: stdev(v) / math.sqrt(len(v)) for x, v in by_context.items() if len(v) > 1}
        band = [(x, y - errors[x], y + errors[x]) for x, y in points if y is not None and x in errors]
        if points:
            series.append(Series(variant.variant, points, i % 8, band, dashed=i >= 8))
    if not series:
        return None
    told = mapping(variants[0].result.get("length"))
    drawn = line_chart(
        "loss-by-variant",
        "Loss on the same last tokens against the context they see, by variant",
        "; ".join(f"{s.name}: {', '.join(f'{x:g} {number(y)}' for x, y in s.points)}" for s in series),
        series,
        Axis("context, tokens", log=True, at=sorted({x for s in series for x, _ in s.points}), form=short),
        Axis("nats a token"),
        rules=_trained(told),
        width=FULL,
        height=340,
    )
    return Figure(
        "loss-by-variant",
        "Which variant bears a longer text?",
        "Each model as it was trained, without any extension: loss on the same last tokens as the context "
        "before them grows; means over the seeds, bands ± 1 standard error.",
        [Panel("loss-by-variant", drawn, Table(["variant", "seed", "context", "loss"], numbers), wide=True)],
    )


def _context(told: Mapping[str, Any], suffix: str, of: str, variant: str) -> Figure | None:
    colours = _colours(_methods(told))
    series, rows = [], []
    for row in objects(told.get("rows")):
        method = str(row.get("method"))
        points, band = [], []
        for loss in objects(row.get("losses")):
            x, y = finite(loss.get("context")), finite(loss.get("loss"))
            if x is None:
                continue
            points.append((x, y))
            error = finite(loss.get("stderr"))
            if y is not None and error is not None:
                band.append((x, y - error, y + error))
            rows.append([variant, method, row.get("extension"), x, y, error, loss.get("targets")])
        if points:
            colour = colours[method]
            series.append(Series(method, points, colour, band, dashed=colour == "grey"))
    if not series:
        return None
    ticks = sorted({x for s in series for x, _ in s.points})
    last = finite(told.get("last"))
    name = f"loss-by-context{suffix}"
    body = line_chart(
        name,
        f"Loss on the same last tokens against the context they see{of}",
        "; ".join(f"{s.name}: {', '.join(f'{x:g} {number(y)}' for x, y in s.points)}" for s in series),
        series,
        Axis("context, tokens", log=True, at=ticks, form=short),
        Axis("nats a token"),
        rules=_trained(told),
        width=FULL,
        height=320,
    )
    table = Table(["variant", "method", "extension", "context", "loss", "stderr", "targets"], rows)
    same = f"the same last {last:g} tokens" if last is not None else "the same last tokens"
    return Figure(
        name,
        f"Does more context help?{of}",
        f"Loss on {same} of each document as the context before them grows; a method is of use only where "
        "its line falls below the dashed grey one, the window's (bands: ± 1 standard error).",
        [Panel(name, body, table, wide=True)],
    )


def _position(told: Mapping[str, Any], suffix: str, of: str, variant: str) -> Figure | None:
    colours = _colours(_methods(told))
    series, rows = [], []
    end = 0.0
    for row in objects(told.get("by_position")):
        method = str(row.get("method"))
        points = []
        for span in objects(row.get("rows")):
            start, stop, y = (finite(span.get(k)) for k in ("start", "stop", "loss"))
            if start is not None and stop is not None:
                points.append(((start + stop) / 2, y))
                rows.append([variant, method, start, stop, y])
                end = max(end, stop)
        if points:
            series.append(Series(method, points, colours[method], dashed=colours[method] == "grey"))
    if not series:
        return None
    name = f"loss-by-position{suffix}"
    length = finite(told.get("train_length"))
    ticks = [length * i for i in range(int(end // length) + 1)] if length and end / length < 20 else []
    body = line_chart(
        name,
        f"Loss against the position in the text{of}",
        "; ".join(f"{s.name} ends at {number(s.points[-1][1])}" for s in series),
        series,
        Axis("position, tokens", 0.0, end, at=ticks if len(ticks) > 1 else None),
        Axis("nats a token"),
        rules=_trained(told),
        width=FULL,
        height=320,
    )
    return Figure(
        name,
        f"Loss by position{of}",
        "Mean loss of the tokens at each place of a long text; a line that climbs behind the trained length "
        "has lost its way, one that stays level has at least kept calm.",
        [Panel(name, body, Table(["variant", "method", "start", "stop", "loss"], rows), wide=True)],
    )


def _table(stages: Sequence[Stage], suffix: str, of: str) -> Figure | None:
    """What each method costs and brings: means over the seeds, and whether the window is beaten for certain."""
    told = mapping(stages[0].result.get("length"))
    rows = objects(told.get("rows"))
    if not rows:
        return None
    copied = any(objects(get(s.result, "length", "copy")) for s in stages)
    cells, numbers, styles = [], [], []
    for row in rows:
        method = str(row.get("method"))
        mine = [_row(stage, method) for stage in stages]
        tax, gain, over = (mean([r.get(k) for r in mine]) for k in ("tax", "gain", "over_window"))
        error = None if method == "window" else _error(stages, method)
        copy = mean([_copy_at(stage, method) for stage in stages]) if copied else None
        cells.append(
            [
                escape(method),
                *([percent(copy)] if copied else []),
                _less(over, error),
                signed(tax),
                signed(gain),
                _yes(row.get("identical")),
            ]
        )
        told_by = [row.get("extension"), tax, gain, over, error, copy, row.get("identical")]
        numbers.append([stages[0].variant, method, *told_by, len(stages)])
        styles.append("floor" if method == "window" else "")
    longest = short(_longest(told))
    columns = ["over the window", "tax", "gain", "identical when short"]
    body = html_table(
        ["method", *([f"copied right at {longest}"] if copied else []), *columns],
        cells,
        text=(0, len(columns) + copied),
        styles=styles,
    )
    name = f"length-table{suffix}"
    keys = ("extension", "tax", "gain", "over_window", "two_standard_errors", "copy", "identical")
    table = Table(["variant", "method", *keys, "seeds"], numbers)
    many = f"means over {len(stages)} seeds" if len(stages) > 1 else "one seed"
    paired = "seeds" if len(stages) > 1 else "documents"
    return Figure(
        name,
        f"What each method brings and costs{of}",
        f"In nats a token, {many}. Over the window: its loss at {longest} tokens less that of the model that "
        f"sees only the trained length, of use if negative (± 2 standard errors over {paired}); tax: what it "
        f"adds at the trained length; gain: how far its loss falls from there to {longest}.",
        [Panel(name, body, table, wide=True)],
    )


def _row(stage: Stage, method: str) -> Mapping[str, Any]:
    rows = objects(get(stage.result, "length", "rows"))
    return next((r for r in rows if str(r.get("method")) == method), {})


def _error(stages: Sequence[Stage], method: str) -> float | None:
    """Two standard errors of `over_window`: over the seeds, with one seed over its documents."""
    gaps = [finite(_row(s, method).get("over_window")) for s in stages]
    if len(stages) == 1:
        one, other = (_documents(stages[0], name) for name in (method, "window"))
        gaps = [a - b for a, b in zip(one, other, strict=False)]
    known = [g for g in gaps if g is not None]
    return 2 * stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None


def _documents(stage: Stage, method: str) -> list[float]:
    """Each document's loss at the longest context."""
    losses = objects(_row(stage, method).get("losses"))
    return [v for v in map(finite, array(losses[-1].get("by_document"))) if v is not None] if losses else []


def _less(over: float | None, error: float | None) -> str:
    if over is None or error is None:
        return signed(over)
    text = f"{signed(over)} <small>± {number(error, 3)}</small>"
    return text if abs(over) > max(error, 5e-4) else f'<span class="dim">{text}, none seen</span>'


def _copy_at(stage: Stage, method: str) -> float | None:
    """Copy accuracy at the longest length."""
    found = {
        length: finite(row.get("accuracy"))
        for row in objects(get(stage.result, "length", "copy"))
        if str(row.get("method")) == method and (length := finite(row.get("length"))) is not None
    }
    return found[max(found)] if found else None


def _copies(told: Mapping[str, Any], suffix: str, of: str, variant: str) -> Figure | None:
    colours = _colours(_methods(told))
    lines: dict[str, list[tuple[float, float | None]]] = {}
    numbers = []
    for row in objects(told.get("copy")):
        length, method = finite(row.get("length")), str(row.get("method"))
        if length is not None:
            lines.setdefault(method, []).append((length, finite(row.get("accuracy"))))
            numbers.append([variant, method, length, row.get("period"), row.get("accuracy")])
    series = [Series(m, p, colours.get(m, 0), dashed=colours.get(m) == "grey") for m, p in lines.items()]
    if not series:
        return None
    name = f"copy{suffix}"
    body = line_chart(
        name,
        f"Share of a repeated passage that is copied right{of}",
        "; ".join(f"{s.name}: {', '.join(f'{x:g} {number(y)}' for x, y in s.points)}" for s in series),
        series,
        Axis("length, tokens", log=True, at=sorted({x for s in series for x, _ in s.points}), form=short),
        Axis("share of the repeat that is right", 0.0, 1.0),
        rules=_trained(told),
        width=FULL,
        height=320,
    )
    return Figure(
        name,
        f"Can it still copy?{of}",
        "A random passage of nearly half the length comes twice; the share of the second one's symbols that "
        "are the likeliest guess. Only what lies further back than the window can tell them.",
        [Panel(name, body, Table(["variant", "method", "length", "period", "accuracy"], numbers), wide=True)],
    )


def _yes(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else "–"


def _passkey(found: Sequence[Mapping[str, Any]], suffix: str, of: str, variant: str) -> Figure | None:
    methods = list(dict.fromkeys(str(p.get("method")) for p in found))
    panels = []
    for i, method in enumerate(methods):
        mine = [p for p in found if str(p.get("method")) == method]
        lengths = sorted({x for p in mine if (x := finite(p.get("length"))) is not None})
        depths = sorted({x for p in mine if (x := finite(p.get("depth"))) is not None})
        if not lengths or not depths:
            continue
        known = {(finite(p.get("length")), finite(p.get("depth"))): finite(p.get("accuracy")) for p in mine}
        name = f"passkey{suffix}-{i + 1}"
        title = f"Passkey accuracy, {method}{of}"
        body = heat_map(
            name,
            title,
            "; ".join(
                f"length {amount(a)}, depth {b:g}: {number(c)}"
                for (a, b), c in known.items()
                if a and b is not None
            ),
            [short(x) for x in lengths],
            [f"{x:g}" for x in depths],
            [[known.get((a, b)) for b in depths] for a in lengths],
            row_label="length, tokens",
            column_label="depth of the key (0: start, 1: end)",
        )
        table = Table(
            ["variant", "method", "length", "depth", "accuracy"],
            [[variant, method, *(p.get(k) for k in ("length", "depth", "accuracy"))] for p in mine],
        )
        panels.append(Panel(name, body, table, title=method))
    if not panels:
        return None
    return Figure(
        f"passkey{suffix}",
        f"Finding a key in filler{of}",
        "Share of trials in which the model repeated a random key hidden at that depth of a text of that "
        "length; deep colour is always, pale is never.",
        panels,
    )
