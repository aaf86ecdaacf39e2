"""A study of tokenizers: what a way of cutting text is worth, in bits per byte and against typing errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmlab.lab.intervals import Difference, paired
from lmlab.lab.report.figure import Figure, Panel, Table, html_table
from lmlab.lab.report.read import RunFiles, get, mean
from lmlab.lab.report.text import escape, finite, listing, number, percent, signed

UNSEEN = "no difference is seen for"


@dataclass(frozen=True)
class Cut:
    """One variant: bits per byte of each seed on the text as it is, and what typing errors add to them."""

    name: str
    bits: tuple[float, ...]
    cost: tuple[float, ...]
    bytes_per_token: float | None
    pieces: float | None


def cuts(run: RunFiles) -> list[Cut]:
    """The variants with a measurement of typing errors; none where all share one tokenizer."""
    found = []
    for name in run.variants("evaluate"):
        judged = [s.result for s in run.of("evaluate", name)]
        pairs = [(finite(r.get("bits_per_byte")), finite(get(r, "typos", "bits_per_byte"))) for r in judged]
        known = [(clean, wrong) for clean, wrong in pairs if clean is not None and wrong is not None]
        if not known or len(known) < len(pairs):
            continue
        made = run.of("tokenize", name)
        found.append(
            Cut(
                name=name,
                bits=tuple(clean for clean, _ in known),
                cost=tuple(wrong - clean for clean, wrong in known),
                bytes_per_token=mean([r.get("bytes_per_token") for r in judged]),
                pieces=mean([s.result.get("vocab_size") for s in made]),
            )
        )
    unlike = {s.directory for s in run.of("tokenize")}
    return found if len(found) > 1 and len(unlike) > 1 else []


def _differences(found: Sequence[Cut], values: Mapping[str, tuple[float, ...]]) -> dict[str, Difference]:
    """Against the first variant; of those with as many seeds."""
    first = found[0].name
    alike = {name: row for name, row in values.items() if len(row) == len(values[first])}
    return paired(alike, first) if len(alike) > 1 else {}


def verdict(run: RunFiles) -> str | None:
    """The answer in a sentence, as HTML; None where this is no study of tokenizers."""
    found = cuts(run)
    if not found:
        return None
    seeds = "one seed" if len(found[0].bits) == 1 else f"{len(found[0].bits)} seeds"
    text = _told(_differences(found, {c.name: c.bits for c in found}), "fewer bits per byte")
    errors = _told(_differences(found, {c.name: c.cost for c in found}), "less harmed by typing errors")
    return f"Against {escape(found[0].name)}, {seeds}: {text}. And {errors}."


def _told(differences: Mapping[str, Difference], good: str) -> str:
    seen = {name: one for name, one in differences.items() if one.seen}
    better = [_by(name, one) for name, one in seen.items() if one.mean < 0]
    worse = [_by(name, one) for name, one in seen.items() if one.mean > 0]
    rest = [escape(name) for name in differences if name not in seen]
    parts = [
        f"<strong>{good}: {listing(better)}</strong>"
        if better
        else f"<strong>none is seen to have {good}</strong>"
    ]
    if good.startswith("less"):
        parts[0] = parts[0].replace("none is seen to have", "none is seen to be")
    parts += [f"the other way: {listing(worse)}"] if worse else []
    parts += [f"{UNSEEN} {listing(rest)}"] if rest else []
    return "; ".join(parts)


def _by(name: str, one: Difference) -> str:
    return f"{escape(name)} <span>({signed(one.mean)})</span>"


def answer(run: RunFiles) -> Figure | None:
    """The table that answers the question of a study of tokenizers."""
    found = cuts(run)
    if not found:
        return None
    bits = _differences(found, {c.name: c.bits for c in found})
    cost = _differences(found, {c.name: c.cost for c in found})
    cells, rows = [], []
    for cut in found:
        cells.append(
            [
                escape(cut.name),
                number(cut.pieces, 0),
                number(cut.bytes_per_token),
                number(mean(cut.bits), 3),
                _interval(bits.get(cut.name)),
                number(mean(cut.cost), 3),
                _interval(cost.get(cut.name)),
            ]
        )
        rows.append([cut.name, cut.pieces, cut.bytes_per_token, len(cut.bits)])
        for values, told in ((cut.bits, bits.get(cut.name)), (cut.cost, cost.get(cut.name))):
            rows[-1] += [mean(values), *([told.mean, told.low, told.high, told.seen] if told else [None] * 4)]
    share = next((get(s.result, "typos", "share") for s in run.of("evaluate")), None)
    first = found[0].name
    columns = ["variant", "pieces", "bytes a token", "bits per byte", f"against {first}", "cost of errors"]
    named = ["bits_per_byte", "difference", "low", "high", "seen"]
    return Figure(
        "cutting",
        "What each way of cutting is worth",
        f"Bits per byte of held-out text, and what they grow by where {percent(finite(share))} of the letters are "
        "typed wrongly (the same errors for all). Differences are paired by seed, with Student's interval, held to "
        "95 % over all rows (Holm); bold where it leaves 0 out.",
        [
            Panel(
                "cutting",
                html_table([*columns, f"against {first}"], cells),
                Table(
                    ["variant", "pieces", "bytes_per_token", "seeds", *named, *("typos_" + n for n in named)],
                    rows,
                ),
                wide=True,
            )
        ],
    )


def _interval(one: Difference | None) -> str:
    if one is None:
        return "–"
    text = signed(one.mean)
    if finite(one.low) is None:
        return text
    wide = f'<span class="dim">{signed(one.low)} to {signed(one.high)}</span>'
    return f"<strong>{text}</strong> {wide}" if one.seen else f"{text} {wide}"
