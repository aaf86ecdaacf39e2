"""What came out: the verdict in a sentence, the table, and bits per byte beside general compressors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from lmlab.lab.intervals import Difference, paired
from lmlab.lab.report import cutting, length, losses
from lmlab.lab.report.chart import Bar, bar_chart
from lmlab.lab.report.figure import Figure, Panel, Section, Table, html_table
from lmlab.lab.report.read import STAGES, RunFiles, Stage, get, mean
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import amount, duration, escape, finite, listing, number, short, signed

FLOORS = {
    "uniform": "uniform bytes",
    "unigram": "byte counts (order 0)",
    "zlib": "zlib −9",
    "lzma": "lzma, training text before",
}
SAME = "on the same <span>held-out</span> bytes"
SPLIT = 4  # variants whose times are told apart
SEED_NOISE = 0.02  # bits per byte: differences below it say nothing


@dataclass(frozen=True)
class Outcome:
    """One variant: means over its seeds, None where a stage isn't done."""

    name: str
    bits: float | None
    single: tuple[float, ...]
    bytes_per_token: float | None
    parameters: float | None
    tokens: float | None
    rate: float | None
    loss: float | None
    seconds: float | None


def outcomes(run: RunFiles) -> list[Outcome]:
    """The variants in the recipe's order."""
    found = []
    for name in run.variants("train", "evaluate"):
        trained = [s.result for s in run.of("train", name)]
        judged = [s.result for s in run.of("evaluate", name)]
        bits = [b for b in (finite(r.get("bits_per_byte")) for r in judged) if b is not None]
        found.append(
            Outcome(
                name=name,
                bits=mean(bits),
                single=tuple(bits),
                bytes_per_token=mean([r.get("bytes_per_token") for r in judged]),
                parameters=mean([r.get("parameters") for r in trained]),
                tokens=mean([r.get("tokens") for r in trained]),
                rate=mean([r.get("tokens_per_second") for r in trained]),
                loss=mean([r.get("held_out_loss") for r in trained]),
                seconds=mean([r.get("seconds") for r in trained]),
            )
        )
    return found


def floors(run: RunFiles) -> dict[str, float]:
    """Bits per byte of the baselines on the same held-out bytes."""
    known: dict[str, float] = {}
    for stage in run.of("evaluate"):
        for name in FLOORS:
            value = finite(get(stage.result, "baselines", name))
            if value is not None:
                known.setdefault(name, value)
    return known


def verdict(run: RunFiles) -> str:
    """The result in plain words, as HTML: of a study the answer to its question."""
    asked = losses.verdict(run) or length.verdict(run) or cutting.verdict(run)
    if asked is not None:
        return asked
    found = [o for o in outcomes(run) if o.bits is not None]
    if not found:
        return "No model has been measured in this run yet."
    best = min(found, key=lambda o: o.bits or 0.0)
    several = len(found) > 1
    who = f"Best of {len(found)} variants, <strong>{escape(best.name)}</strong>: " if several else ""
    text = f"{who}<strong>{number(best.bits)} bits per byte</strong>"
    return text + _against(best.bits or 0.0, floors(run)) + "."


def _against(bits: float, known: Mapping[str, float]) -> str:
    rivals = [(name, known[name]) for name in ("zlib", "lzma") if name in known]
    below = [f"<span>{name} {number(value)}</span>" for name, value in rivals if bits < value]
    above = [f"<span>{name} {number(value)}</span>" for name, value in rivals if bits >= value]
    if below and above:
        return f": below {listing(below)}, but not below {listing(above)}, {SAME}"
    if below:
        return f": below {listing(below)} {SAME}"
    if above:
        return f": not below {listing(above)} {SAME}, so a general compressor does better"
    return ""


def findings(run: RunFiles) -> list[str]:
    """What a careful reader has to know about the verdict."""
    found = [o for o in outcomes(run) if o.bits is not None]
    said = []
    if len(found) > 1:
        said += _seen(found)
        ranked = sorted(found, key=lambda o: o.bits or 0.0)
        gap = (ranked[1].bits or 0.0) - (ranked[0].bits or 0.0)
        if gap < SEED_NOISE:
            said.append(
                f"The best two, {escape(ranked[0].name)} and {escape(ranked[1].name)}, are {number(gap, 3)} "
                f"bits apart: under {SEED_NOISE} is inside the noise of seeds."
            )
        if min(len(o.single) for o in found) < 3:
            said.append(
                "Fewer than three seeds a variant: small differences may be luck (<code>seeds = 3</code>)."
            )
    return said


def _seen(found: Sequence[Outcome]) -> list[str]:
    """Which variants differ from the first one."""
    known = {name: told for name, told in differences(found).items() if isfinite(told.high)}
    if not known:
        return []
    apart = [f"{escape(n)} <span>({signed(told.mean)})</span>" for n, told in known.items() if told.seen]
    alike = [escape(n) for n, told in known.items() if not told.seen]
    parts = [f"different are {listing(apart)}"] if apart else []
    parts += [f"no difference is seen for {listing(alike)}"] if alike else []
    return [f"Against {escape(found[0].name)}, {len(found[0].single)} seeds: {'; '.join(parts)}."]


def missing(run: RunFiles) -> list[str]:
    """Stages that every run has and that this one hasn't finished for some variant."""
    names = run.variants(*STAGES)
    return [
        s for s in STAGES if not run.of(s) or any(not run.of(s, v) and not run.of(s)[0].shared for v in names)
    ]


def tiles(run: RunFiles) -> str:
    """The few numbers to remember."""
    found = outcomes(run)
    known = floors(run)
    measured = [o for o in found if o.bits is not None]
    shown: list[tuple[str, str, str]] = []
    best = min(measured, key=lambda o: o.bits or 0.0) if measured else None
    lead = best or (found[0] if found else None)
    if best is not None:
        note = _beside(best.bits or 0.0, known.get("lzma"))
        shown.append(("bits per byte", number(best.bits), note))
    if lead is not None:
        shown.append(("parameters", amount(lead.parameters), ""))
        shown.append(("tokens trained on", amount(lead.tokens), ""))
        shown.append(("tokens a second", amount(lead.rate), ""))
    for stage in run.of("corpus")[:1]:
        held = f"{amount(stage.result.get('held_out_bytes'))} held out"
        shown.append(("bytes to train on", amount(stage.result.get("train_bytes")), held))
    total = sum(s.seconds or 0.0 for s in _distinct(run))
    shown.append(("time of all stages", duration(total), ""))
    cells = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}{f'<small>{escape(n)}</small>' if n else ''}</dd></div>"
        for k, v, n in shown
    )
    return f'<dl class="tiles">{cells}</dl>'


def _beside(bits: float, lzma: float | None) -> str:
    if lzma is None:
        return ""
    return f"{number(abs(bits - lzma))} {'below' if bits < lzma else 'above'} lzma"


def section(run: RunFiles) -> Section:
    figures = [f for f in (losses.answer(run), length.answer(run), cutting.answer(run)) if f]
    found, known = outcomes(run), floors(run)
    if found:
        figures.append(_table(found, known))
    if known or any(o.bits is not None for o in found):
        figures.append(_bars(found, known))
    if run.stages:
        figures.append(_times(run))
    lead = "" if figures else "No stage of this run is finished yet."
    return Section("summary", "The result", lead, figures)


def _table(found: Sequence[Outcome], known: Mapping[str, float]) -> Figure:
    several = len(found) > 1
    told = differences(found)
    columns = [
        "variant",
        "bits per byte",
        *([f"against {found[0].name}"] if several else []),
        "bytes a token",
        "parameters",
        "tokens",
        "tokens/s",
        "training time",
    ]
    measured = [o.bits for o in found if o.bits is not None]
    best = min(measured, default=None)
    rows = [
        [
            escape(o.name),
            number(o.bits, 3 if several else 2) + _spread(o),
            *([_against_first(told.get(o.name))] if several else []),
            number(o.bytes_per_token),
            amount(o.parameters),
            amount(o.tokens),
            amount(o.rate),
            duration(o.seconds),
        ]
        for o in found
    ]
    styles = ["best" if len(measured) > 1 and o.bits == best else "" for o in found]
    rows += [[escape(FLOORS[n]), number(v), *[""] * (len(columns) - 2)] for n, v in known.items()]
    styles += ["floor"] * len(known)
    table = Table(
        [
            "variant",
            "bits_per_byte",
            "seeds",
            "difference",
            "low",
            "high",
            "level",
            "seen",
            "bytes_per_token",
            "parameters",
            "tokens",
            "tokens_per_second",
            "seconds",
        ],
        [
            *[
                [
                    *(o.name, o.bits, len(o.single), *_numbers(told.get(o.name))),
                    *(o.bytes_per_token, o.parameters, o.tokens, o.rate, o.seconds),
                ]
                for o in found
            ],
            *[[n, v, *[""] * 11] for n, v in known.items()],
        ],
    )
    body = html_table(columns, rows, styles=styles)
    return Figure(
        "summary",
        "The variants and what they stand beside",
        "Fewer bits per byte are better, and comparable whatever the tokenizer; the grey rows are codes that "
        "know no language, on the same held-out bytes." + _explained(found),
        [Panel("summary", body, table, wide=True)],
    )


def _explained(found: Sequence[Outcome]) -> str:
    seeds = max(len(o.single) for o in found)
    if seeds < 2:
        return ""
    of_bits = f" After ± half the range over {seeds} seeds"
    if len(found) < 2:
        return of_bits + "."
    return (
        f"{of_bits}; differences are paired by seed, with Student's interval, held to 95 % over all of "
        "them (Holm)."
    )


def _spread(outcome: Outcome) -> str:
    if len(outcome.single) < 2:
        return ""
    half = (max(outcome.single) - min(outcome.single)) / 2
    return f' <span class="dim">± {number(half, 3)}</span>'


def differences(found: Sequence[Outcome]) -> dict[str, Difference]:
    """Bits per byte less those of the first variant, seed by seed, of the variants that have as many seeds."""
    first = found[0]
    if not first.single:
        return {}
    same = {o.name: o.single for o in found if len(o.single) == len(first.single)}
    return paired(same, first.name)


def _numbers(told: Difference | None) -> tuple[float | bool | None, ...]:
    """Of the table; None where there is nothing to tell, as the interval of one seed."""
    if told is None:
        return (None,) * 5
    if not isfinite(told.high):
        return told.mean, None, None, None, None
    return told.mean, told.low, told.high, told.level, told.seen


def _against_first(told: Difference | None) -> str:
    if told is None:
        return "–"
    text = signed(told.mean)
    if not isfinite(told.high):  # one seed
        return text
    text += f' <span class="dim">{signed(told.low)} to {signed(told.high)}</span>'
    return text if told.seen else f'<span class="dim">{text}, none seen</span>'


def _bars(found: Sequence[Outcome], known: Mapping[str, float]) -> Figure:
    bars = [
        Bar(o.name, o.bits, i, o.single if len(o.single) > 1 else (), strong=True)
        for i, o in enumerate(found)
        if o.bits is not None
    ]
    bars += [Bar(FLOORS[n], v, "grey") for n, v in known.items()]
    bars.sort(key=lambda b: b.value)
    body = bar_chart(
        "bits-per-byte",
        "Bits per byte of each variant and of general compressors",
        "; ".join(f"{b.label} {b.value:.2f}" for b in bars),
        bars,
        Axis("bits per byte of held-out text (shorter is better)", form=short),
    )
    table = Table(
        ["code", "bits_per_byte", "kind"],
        [[b.label, b.value, "baseline" if b.colour == "grey" else "model"] for b in bars],
    )
    return Figure(
        "bits-per-byte",
        "How short the held-out text becomes",
        "Each bar is the length of a code for the same held-out bytes, the shortest on top; models in "
        "colour, compressors in grey, single seeds as rings.",
        [Panel("bits-per-byte", body, table, wide=True)],
    )


def _distinct(run: RunFiles) -> list[Stage]:
    """Each stage directory once: variants share those in which they agree."""
    first: dict[Path, Stage] = {}
    for stage in run.stages:
        first.setdefault(stage.directory, stage)
    return list(first.values())


def _times(run: RunFiles) -> Figure:
    users: dict[Path, set[str]] = {}
    for s in run.stages:
        users.setdefault(s.directory, set()).add(s.variant)
    stages = [s for s in _distinct(run) if s.seconds is not None]
    several = 1 < len(run.variants(*STAGES)) <= SPLIT
    groups: dict[str, list[Stage]] = {}
    for s in stages:
        alone = several and len(users[s.directory]) == 1 and not s.shared
        groups.setdefault(f"{s.stage}, {s.variant}" if alone else s.stage, []).append(s)
    bars = []
    for label, group in groups.items():
        note = f" in {len(group)} runs" if len(group) > 1 else ""
        reused = all(s.reused for s in group)
        seconds = sum(s.seconds or 0.0 for s in group)
        bars.append(Bar(label, seconds, "grey" if reused else 0, note=note + ", reused" * reused))
    body = bar_chart(
        "stage-times",
        "Seconds that each stage took",
        "; ".join(f"{b.label} {duration(b.value)}{b.note}" for b in bars),
        bars,
        Axis("seconds"),
        form=duration,
    )
    table = Table(
        ["stage", "variant", "seed", "seconds", "reused"],
        [[s.stage, s.variant, s.seed, s.seconds, s.reused] for s in stages],
    )
    return Figure(
        "stage-times",
        "Where the time went",
        "One bar a stage, in the order of work; grey ones were done by an earlier run and used again.",
        [Panel("stage-times", body, table, wide=True)],
    )
