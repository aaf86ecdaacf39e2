"""One checkpoint, fine-tuned with every loss: what differs from cross-entropy, and what no one can see."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmlab.lab.report.chart import FULL, Dot, Series, interval_chart, line_chart
from lmlab.lab.report.figure import Figure, Panel, Section, Table, html_table
from lmlab.lab.report.read import RunFiles, Stage, array, get, mapping, mean, objects
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import escape, finite, listing, number, short, shorten, signed

METRICS = {  # of the test split, then of the samples
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity a token",
    "accuracy": "accuracy, share of tokens",
    "target_probability": "mean probability of the target",
    "entropy": "entropy of the prediction, nats",
    "distinct_2": "samples: distinct pairs of characters",
    "repetition": "samples: repeated strings of 4 characters",
    "copied": "samples: share copied from the training text",
    "divergence": "samples: divergence from human text, bits",
}
JUDGE = "bits_per_byte"  # what the verdict goes by
UNSEEN = "no difference seen"
SOLID = 8  # lines before colours come again, dashed
CLAIMS = (
    '<p class="dim">What EMO\'s paper claims (arXiv 2310.04691; one run each, no intervals): after fine-tuning '
    "GPT-2 and OPT, up to ten points of MAUVE over cross-entropy and a lower perplexity; after instruction tuning "
    "LLaMA-2, MMLU 50.4 → 51.4, BBH 41.1 → 43.1, GSM8K 29.0 → 33.0, TruthfulQA 46.3 → 48.6. Models of that size "
    "aren't run here, and MAUVE isn't among the columns: distinct pairs, repeated fours and the divergence from "
    "human text below stand for it.</p>"
)


def stage_of(run: RunFiles) -> Stage | None:
    """The comparison of the run, of its first variant."""
    return next((s for s in run.of("compare") if objects(s.result.get("losses"))), None)


def verdict(run: RunFiles) -> str | None:
    """The answer in a sentence, as HTML; None without a comparison."""
    stage = stage_of(run)
    if stage is None:
        return None
    rows = objects(stage.result.get("losses"))
    seeds = len(array(stage.result.get("seeds")))
    found = [(str(r.get("label")), _difference(r, JUDGE)) for r in rows]
    told = [(label, d) for label, d in found if finite(d.get("mean")) is not None]
    better = [_by(label, d) for label, d in told if d.get("seen") and d["mean"] < 0]
    worse = [_by(label, d) for label, d in told if d.get("seen") and d["mean"] > 0]
    rest = [escape(label) for label, d in told if not d.get("seen")]
    parts = []
    if better:
        parts.append(f"<strong>better than cross-entropy: {listing(better)}</strong>")
    else:
        parts.append(f"<strong>no loss of {len(told)} is seen to beat cross-entropy</strong>")
    if worse:
        parts.append(f"worse: {listing(worse)}")
    if rest:
        parts.append(f"{UNSEEN}: {listing(rest)}")
    many = "one seed" if seeds == 1 else f"{seeds} seeds"
    return f"In bits per byte of test text after fine-tuning, {many}: {'; '.join(parts)}."


def _by(label: str, difference: Mapping[str, Any]) -> str:
    return f"{escape(label)} <span>({signed(difference.get('mean'))})</span>"


def answer(run: RunFiles) -> Figure | None:
    """The table that answers the question of a comparison."""
    stage = stage_of(run)
    if stage is None:
        return None
    rows = objects(stage.result.get("losses"))
    human = mapping(stage.result.get("human"))
    seeds = len(array(stage.result.get("seeds")))
    cells, styles, numbers = [], [], []
    for row in rows:
        told = mapping(row.get("metrics"))
        cells.append(
            [
                escape(row.get("label")),
                number(told.get(JUDGE), 3),
                _interval(_difference(row, JUDGE)),
                _dim(_difference(row, "accuracy")),
                number(told.get("distinct_2"), 3),
                number(told.get("repetition"), 3),
                number(told.get("copied"), 3),
            ]
        )
        styles.append("")
        for metric in METRICS:
            d = _difference(row, metric)
            numbers.append(
                [
                    row.get("label"),
                    metric,
                    told.get(metric),
                    *(d.get(k) for k in ("mean", "low", "high", "seen")),
                ]
            )
    texts = [number(human.get(k), 3) for k in ("distinct_2", "repetition", "copied")]
    cells.append(["human text", "", "", "", *texts])
    styles.append("floor")
    body = html_table(
        [
            "loss",
            "bits per byte",
            "less cross-entropy's",
            "accuracy, less its",
            "distinct pairs",
            "repeated fours",
            "copied",
        ],
        cells,
        styles=styles,
    )
    columns = ["loss", "metric", "mean", "difference", "low", "high", "seen"]
    return Figure(
        "losses",
        "The losses, each fine-tuned from the same checkpoint",
        f"Means over {seeds} seeds on the test split; differences are paired by seed, with 95 % t-intervals "
        "corrected for the number of losses (Holm): one that holds 0 is no difference seen.",
        [Panel("losses", body, Table(columns, numbers), wide=True)],
        CLAIMS if any("emo" in str(row.get("label")) for row in rows) else "",
    )


def section(run: RunFiles) -> Section | None:
    stage = stage_of(run)
    if stage is None:
        return None
    told = stage.result
    rows = objects(told.get("losses"))
    found = [
        _intervals(rows, mapping(told.get("human"))),
        _pulls(mapping(told.get("gradient"))),
        _curves(rows),
        _rates(rows),
        _nearest(mapping(told.get("cost"))),
        _costs(mapping(told.get("cost"))),
    ]
    tokens = mapping(get(told, "corpus", "tokens"))
    lead = (
        f"Fine-tuned for {number(told.get('steps'), 0)} steps on a second text "
        f"({', '.join(f'{escape(k)} {short(v)} tokens' for k, v in tokens.items() if finite(v) is not None)}); "
        "every loss sees the same batches, at the learning rate that was best for it on the validation split."
    )
    return Section("losses", "Loss against loss", lead, [f for f in found if f])


def _difference(row: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    return mapping(get(row, "differences", metric))


def _interval(difference: Mapping[str, Any]) -> str:
    """−0.012 [−0.020, −0.004], dim where 0 is inside."""
    gap, low, high = (finite(difference.get(k)) for k in ("mean", "low", "high"))
    if gap is None:
        return "–"
    if low is None or high is None:
        return f'{signed(gap)} <span class="dim">(one seed)</span>'
    text = f"{signed(gap)} <small>[{signed(low)}, {signed(high)}]</small>"
    return text if difference.get("seen") else f'<span class="dim">{text}, none seen</span>'


def _dim(difference: Mapping[str, Any]) -> str:
    text = signed(difference.get("mean"))
    return text if difference.get("seen") else f'<span class="dim">{text}</span>'


def _bound(dots: Sequence[Dot]) -> float:
    """How far from 0 a drawing reaches: one loss that is far off mustn't flatten the others."""
    reach = sorted(max(abs(v) for v in (d.value, d.low, d.high) if v is not None) for d in dots)
    middle = reach[len(reach) // 2]
    return min(reach[-1], 4 * middle) if middle else reach[-1]


def _intervals(rows: Sequence[Mapping[str, Any]], human: Mapping[str, Any]) -> Figure | None:
    panels = []
    base = next((mapping(r.get("metrics")) for r in rows if not mapping(r.get("differences"))), {})
    for metric, called in METRICS.items():
        dots, numbers = [], []
        for i, row in enumerate(rows):
            d = _difference(row, metric)
            gap, low, high = (finite(d.get(k)) for k in ("mean", "low", "high"))
            if gap is None:
                continue
            label, seen = str(row.get("label")), bool(d.get("seen"))
            dots.append(Dot(label, gap, low, high, i if seen else "grey", signed(gap) if seen else UNSEEN))
            numbers.append([label, gap, low, high, seen])
        if not any(d.value or d.low or d.high for d in dots):
            continue  # nothing at all differs
        far = _bound(dots)
        beside = [f"cross-entropy {number(base.get(metric), 3)}"]
        if finite(human.get(metric)) is not None:
            beside.append(f"human text {number(human.get(metric), 3)}")
        name = f"losses-{metric.replace('_', '-')}"
        drawn = interval_chart(
            name,
            f"{called}: each loss less cross-entropy",
            "; ".join(f"{d.label} {signed(d.value)}" for d in dots),
            dots,
            Axis(f"difference ({', '.join(beside)})", -far, far),
            zero="as cross-entropy",
        )
        table = Table(["loss", "difference", "low", "high", "seen"], numbers)
        panels.append(Panel(name, drawn, table, title=called))
    if not panels:
        return None
    return Figure(
        "losses-intervals",
        "What each loss changes",
        "The dot is the mean paired difference to cross-entropy, the line its corrected 95 % interval; in "
        "colour where 0 lies outside, grey where no difference is seen; an arrow leads out of the picture.",
        panels,
    )


def _pulls(told: Mapping[str, Any]) -> Figure | None:
    p = [finite(v) for v in array(told.get("probabilities"))]
    series, numbers = [], []
    for i, row in enumerate(objects(told.get("losses"))):
        points = [(x, finite(y)) for x, y in zip(p, array(row.get("pull")), strict=False) if x is not None]
        label = str(row.get("label"))
        series.append(Series(label, points, i % SOLID, marks=False, dashed=i >= SOLID))
        numbers += [[label, x, y] for x, y in points]
    if not any(s.points for s in series):
        return None
    drawn = line_chart(
        "losses-pull",
        "Gradient at the target against its probability",
        "; ".join(
            f"{s.name}: {number(s.points[0][1])} where the target is unlikely" for s in series if s.points
        ),
        series,
        Axis("probability that the model gives to the target", 0.0, 1.0),
        Axis("−∂loss/∂(logit of the target)"),
        width=FULL,
        height=330,
    )
    return Figure(
        "losses-pull",
        "How hard each loss pulls",
        "How strongly the target is pulled up, by how likely the model finds it already: cross-entropy pulls "
        "hardest at what it finds unlikely, the others let go of it (mean over common words, the rest of the "
        "probability spread evenly).",
        [Panel("losses-pull", drawn, Table(["loss", "probability", "pull"], numbers), wide=True)],
    )


def _curves(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    series, numbers = [], []
    for i, row in enumerate(rows):
        label = str(row.get("label"))
        by_step: dict[float, list[Any]] = {}
        for one in objects(row.get("runs")):
            for told in objects(one.get("history")):
                step = finite(told.get("step"))
                if step is not None:
                    by_step.setdefault(step, []).append(told.get("ce"))
                    numbers.append([label, one.get("seed"), step, told.get("ce")])
        points = [(step, mean(values)) for step, values in sorted(by_step.items())]
        if points:
            series.append(Series(label, points, i % SOLID, marks=False, dashed=i >= SOLID))
    if not series:
        return None
    drawn = line_chart(
        "losses-curves",
        "Cross-entropy while fine-tuning",
        "; ".join(f"{s.name} ends at {number(s.points[-1][1])}" for s in series),
        series,
        Axis("step"),
        Axis("cross-entropy, nats a token"),
        width=FULL,
        height=310,
    )
    return Figure(
        "losses-curves",
        "Cross-entropy along the way",
        "Whatever is minimised, this is the cross-entropy of each batch, the mean over seeds: the same batches "
        "for every loss, so the lines share their bumps.",
        [Panel("losses-curves", drawn, Table(["loss", "seed", "step", "ce"], numbers), wide=True)],
    )


def _rates(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    rates = sorted({r for row in rows for t in objects(row.get("tried")) if (r := finite(t.get("rate")))})
    if not rates:
        return None
    cells, numbers = [], []
    for row in rows:
        tried = {finite(t.get("rate")): finite(t.get("ce")) for t in objects(row.get("tried"))}
        best = finite(row.get("learning_rate"))
        marked = [
            f"<strong>{number(tried.get(r), 3)}</strong>" if r == best else number(tried.get(r), 3)
            for r in rates
        ]
        cells.append([escape(row.get("label")), *marked])
        numbers += [[row.get("label"), r, tried.get(r), r == best] for r in rates]
    edge = [
        str(r.get("label"))
        for r in rows
        if len(rates) > 1 and finite(r.get("learning_rate")) in (rates[0], rates[-1])
    ]
    which = "all of them" if len(edge) == len(rows) else escape(listing(edge))
    note = (
        f'<p class="dim">At the edge of what was tried: {which}; '
        "a wider range of <code>learning_rates</code> may do better.</p>"
        if edge
        else ""
    )
    body = html_table(["loss", *(short(r) for r in rates)], cells)
    return Figure(
        "losses-rates",
        "The learning rate of each loss",
        "Cross-entropy on the validation split, one seed that is used for nothing else; the best one is bold "
        "and was taken, since losses scale their gradients differently.",
        [Panel("losses-rates", body, Table(["loss", "rate", "ce", "taken"], numbers), wide=True)],
        note,
    )


def _nearest(cost: Mapping[str, Any]) -> Figure | None:
    panels = []
    for i, word in enumerate(objects(cost.get("nearest"))):
        rows, numbers = [], []
        sides = [objects(word.get(k)) for k in ("raw", "centred")]
        for k in range(max(map(len, sides))):
            pair = [s[k] if k < len(s) else {} for s in sides]
            rows.append([str(k + 1), *(f"{_piece(n)} {number(n.get('cost'))}" for n in pair)])
            numbers.append(
                [word.get("piece"), k + 1, *(v for n in pair for v in (n.get("piece"), n.get("cost")))]
            )
        name = f"cost-nearest-{i + 1}"
        columns = ["piece", "rank", "raw", "raw_cost", "centred", "centred_cost"]
        body = html_table(["", "raw", "centred"], rows, text=(0, 1, 2))
        title = f"nearest to “{str(word.get('piece')).strip()}”"
        panels.append(Panel(name, body, Table(columns, numbers), title=shorten(title, 40)))
    if not panels:
        return None
    return Figure(
        "cost-nearest",
        "What the transport cost holds for near",
        "The ten nearest common words by the cost that EMO takes from the model's head (1 − cosine), as it is "
        "and with the mean direction taken out; the cost is 0 for the same word.",
        panels,
    )


def _piece(told: Mapping[str, Any]) -> str:
    return f"<code>{escape(str(told.get('piece', '–')).strip())}</code>"


def _costs(cost: Mapping[str, Any]) -> Figure | None:
    edges = [finite(v) for v in array(get(cost, "histogram", "edges"))]
    series, numbers = [], []
    for i, name in enumerate(("raw", "centred")):
        counts = [finite(v) for v in array(get(cost, "histogram", name))]
        total = sum(c for c in counts if c is not None) or 1.0
        points = [
            ((a + b) / 2, None if c is None else c / total)
            for a, b, c in zip(edges, edges[1:], counts, strict=False)
            if a is not None and b is not None
        ]
        numbers += [[name, x, y] for x, y in points]
        if points:
            series.append(Series(name, points, i, marks=False))
    if not series:
        return None
    drawn = line_chart(
        "cost-spread",
        "How the costs of pairs of common words are spread",
        "Shares of pairs in forty bins of the cost, as it is and centred.",
        series,
        Axis("cost between two words", 0.0, 2.0),
        Axis("share of pairs", low=0.0),
        width=FULL,
        height=230,
    )
    return Figure(
        "cost-spread",
        "How far words lie apart",
        "A cost that is nearly the same for all pairs tells EMO nothing that plain accuracy doesn't; centring "
        "takes out what all words share.",
        [Panel("cost-spread", drawn, Table(["cost", "middle", "share"], numbers), wide=True)],
    )
