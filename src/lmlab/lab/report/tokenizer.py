"""How text is cut: bytes a token by script, the pieces, sampled segmentations, the training curve."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmlab.lab.report import lattice, pieces
from lmlab.lab.report.chart import FULL, Bar, Colour, Series, bar_chart, line_chart
from lmlab.lab.report.figure import Figure, Panel, Section, Table
from lmlab.lab.report.read import RunFiles, Stage, array, get, mapping, objects
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import amount, escape, finite, number

SCRIPTS = 12


def section(run: RunFiles) -> Section:
    stages = _unlike(run)
    if not stages:
        return Section("tokenizer", "How text is cut", "No tokenizer is trained in this run yet.")
    lead = "; ".join(
        f"{_called(s, stages)}{amount(s.result.get('vocab_size'))} pieces, "
        f"{number(get(s.result, 'bytes_per_token', 'held_out'))} bytes a token on held-out text"
        for s in stages
    )
    found = [
        _scripts(stages),
        *pieces.figures(stages),
        _segmentations(stages),
        *lattice.figures(stages),
        _rounds(stages),
    ]
    figures = [f for f in found if f]
    return Section("tokenizer", "How text is cut", escape(lead[:1].upper() + lead[1:]) + ".", figures)


def _unlike(run: RunFiles) -> list[Stage]:
    """Each tokenizer once, with the first variant that uses it."""
    return list({s.directory: s for s in reversed(run.of("tokenize"))}.values())[::-1]


def _called(stage: Stage, stages: Sequence[Stage]) -> str:
    return f"{stage.variant}: " if len(stages) > 1 else ""


def _scripts(stages: Sequence[Stage]) -> Figure | None:
    bars, rows = [], []
    for i, stage in enumerate(stages):
        scripts = [(k, v) for k, v in mapping(stage.result.get("by_script")).items() if finite(v) is not None]
        scripts.sort(key=lambda pair: -pair[1])
        rows += [[stage.variant, script, value] for script, value in scripts]
        colour: Colour = i
        bars += [Bar(_called(stage, stages) + str(k), v, colour) for k, v in scripts[:SCRIPTS]]
    if not bars:
        return None
    body = bar_chart(
        "bytes-per-token",
        "Bytes a token by script",
        "; ".join(f"{b.label} {b.value:.2f}" for b in bars),
        bars,
        Axis("bytes a token"),
    )
    return Figure(
        "bytes-per-token",
        "Bytes a token by script",
        "Longer bars mean that a token holds more text of that script; one Chinese character alone is three "
        "bytes, one Latin letter is one.",
        [Panel("bytes-per-token", body, Table(["variant", "script", "bytes_per_token"], rows), wide=True)],
    )


def _segmentations(stages: Sequence[Stage]) -> Figure | None:
    panels = []
    for i, stage in enumerate(stages):
        cuts = objects(stage.result.get("segmentations"))
        if not cuts:
            continue
        panels.append(
            Panel(
                f"segmentations{_suffix(i, stages)}",
                "".join(map(_segmentation, cuts)),
                Table(
                    ["variant", "alpha", "tokens", "text", "pieces"],
                    [
                        [
                            stage.variant,
                            "viterbi" if c.get("alpha") is None else c.get("alpha"),
                            len(array(c.get("pieces"))),
                            str(c.get("text")),
                            " | ".join(map(str, array(c.get("pieces")))),
                        ]
                        for c in cuts
                    ],
                ),
                title=stage.variant if len(stages) > 1 else "",
                wide=True,
            )
        )
    if not panels:
        return None
    return Figure(
        "segmentations",
        "One text, cut several ways",
        "Each coloured box is a token: the best cut (Viterbi) first, then cuts drawn at random, where a "
        "small α strays further from the best one and α = 0 takes every cut alike.",
        panels,
        _broken(stages),
    )


def _broken(stages: Sequence[Stage]) -> str:
    """A word on \N{REPLACEMENT CHARACTER} where it occurs."""
    cuts = [c for s in stages for c in objects(s.result.get("segmentations"))]
    if not any("\ufffd" in str(p) for c in cuts for p in array(c.get("pieces"))):
        return ""
    return '<p class="dim">\ufffd is a token of some of the bytes of a character.</p>'


def _segmentation(cut: Mapping[str, Any]) -> str:
    alpha = finite(cut.get("alpha"))
    cuts = array(cut.get("pieces"))
    drawn = "".join(
        f'<span class="piece p{j % pieces.TINTS}">{pieces.blank(p)}</span>' for j, p in enumerate(cuts)
    )
    how = "best (Viterbi)" if alpha is None else f"sampled, α = {alpha:g}"
    return (
        f'<div class="segmentation"><span>{how}<br/>{len(cuts)} tokens</span>'
        f'<p class="pieces token">{drawn}</p></div>'
    )


def _rounds(stages: Sequence[Stage]) -> Figure | None:
    series, rows = [], []
    for i, stage in enumerate(stages):
        points = [
            (x, y)
            for r in objects(stage.result.get("rounds"))
            if (x := finite(r.get("size"))) and (y := finite(r.get("bytes_per_token"))) is not None
        ]
        if points:
            colour: Colour = i
            series.append(Series(stage.variant, sorted(points), colour))
            rows += [[stage.variant, x, y] for x, y in points]
    if not series:
        return None
    body = line_chart(
        "tokenizer-training",
        "Bytes a token against the size of the vocabulary",
        "; ".join(
            f"{s.name} ends at {s.points[0][1]:.2f} bytes a token with {s.points[0][0]:.0f} pieces"
            for s in series
        ),
        series,
        Axis("pieces in the vocabulary (training goes from right to left)", log=True),
        Axis("bytes a token"),
        width=FULL,
        height=260,
    )
    return Figure(
        "tokenizer-training",
        "Training the tokenizer",
        "Training starts with too many pieces and takes away the least useful ones: the lower the line "
        "falls, the more compression the smaller vocabulary costs.",
        [Panel("tokenizer-training", body, Table(["variant", "size", "bytes_per_token"], rows), wide=True)],
    )


def _suffix(index: int, stages: Sequence[Stage]) -> str:
    return f"-{index + 1}" if len(stages) > 1 else ""
