"""What the model writes: each token shaded by its surprise, and what is copied from the training text."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lmlab.lab.report.figure import Figure, Panel, Section, Table, html_table
from lmlab.lab.report.read import RunFiles, Stage, array, get, mapping, read_lines
from lmlab.lab.report.text import escape, finite, number, percent

SHOWN = 24  # samples a variant; the rest is in samples.jsonl
SURPRISE = (1, 3, 5, 8, 12)  # bits: where a deeper shade begins
CHARACTERS = 6000  # of one sample
MEASURES = {
    "distinct_1": "distinct characters",
    "distinct_2": "distinct pairs",
    "distinct_4": "distinct runs of 4",
    "repetition": "repeated runs of 4 in a sample",
    "copied": "copied from training",
    "divergence": "distance from real text, bits",
}


@dataclass(frozen=True)
class Token:
    """A stretch of the sample's text with the bits that it cost; bits None where they aren't known."""

    text: str
    bits: float | None
    start: int  # in bytes of the text


def findings(run: RunFiles) -> list[str]:
    """How much of the first variant's samples is copied, beside real text."""
    for stage in _first(run):
        told = mapping(stage.result.get("samples"))
        copied, real = finite(told.get("copied")), finite(told.get("reference_copied"))
        if copied is None:
            continue
        beside = f" (of real held-out text: {percent(real)})" if real is not None else ""
        return [f"Of its samples {percent(copied)} stand word for word in the training text{beside}."]
    return []


def _first(run: RunFiles) -> list[Stage]:
    """The samples of each variant's first seed."""
    return list({s.variant: s for s in reversed(run.of("generate"))}.values())[::-1]


def section(run: RunFiles) -> Section:
    figures = []
    first = _first(run)
    for i, stage in enumerate(first):
        found = read_lines(stage.directory / "samples.jsonl")
        if found:
            figures.append(_figure(stage, found, f"-{i + 1}" if len(first) > 1 else "", len(first) > 1))
    if any(mapping(s.result.get("samples")) for s in first):
        figures.append(_quality(first))
    lead = "" if figures else "No samples were drawn in this run yet."
    return Section("samples", "What it writes", lead, figures)


def _figure(stage: Stage, found: Sequence[Mapping[str, Any]], suffix: str, several: bool) -> Figure:
    name = f"samples{suffix}"
    cards = "".join(map(_card, found[:SHOWN]))
    more = f'<p class="dim">{len(found) - SHOWN} more in samples.jsonl.</p>' if len(found) > SHOWN else ""
    table = Table(
        ["variant", "sample", "prompt", "text", "finish", "tokens", "bits_a_token", "copied"],
        [
            [
                stage.variant,
                i,
                str(s.get("prompt") or ""),
                str(s.get("text") or ""),
                s.get("finish"),
                len(array(s.get("pieces"))),
                _mean_bits(s),
                s.get("copied"),
            ]
            for i, s in enumerate(found)
        ],
    )
    return Figure(
        name,
        f"Samples{f' of {stage.variant}' if several else ''}",
        "The deeper a token's shade, the less the model had expected it; underlined text stands word for "
        "word in the training text (at least 32 bytes); the prompt is grey.",
        [Panel(name, f'{_key()}<div class="samples">{cards}</div>', table, wide=True)],
        more,
    )


def _key() -> str:
    names = [f"under {SURPRISE[0]} bit"]
    names += [f"{a}–{b}" for a, b in pairwise(SURPRISE)]
    names.append(f"over {SURPRISE[-1]} bits")
    shades = "".join(f'<span><span class="q{i}">token</span>{n}</span>' for i, n in enumerate(names))
    return f'<div class="key">{shades}<span><span class="copied">copied</span></span></div>'


def _card(sample: Mapping[str, Any]) -> str:
    text = str(sample.get("text") or "")
    tokens = align(text, array(sample.get("pieces")), array(sample.get("logprobs")))
    spans = [(int(s[0]), int(s[1])) for s in array(sample.get("copied_spans")) if _is_span(s)]
    body, left = "", CHARACTERS
    for token in tokens:
        body += _token(token, spans)
        left -= len(token.text)
        if left < 0:
            body += '<span class="end">cut here</span>'
            break
    facts = [f"{number(_mean_bits(sample), 1)} bits a token", f"{percent(sample.get('copied'))} copied"]
    ends = {"stop": "ended by itself", "length": "stopped at the limit"}
    facts.append(ends.get(str(sample.get("finish")), ""))
    head = "".join(f"<span>{escape(f)}</span>" for f in facts if f)
    prompt = sample.get("prompt")
    before = f'<span class="prompt">{escape(prompt, lines=True)}</span>' if prompt else ""
    end = '<span class="end">end</span>' if sample.get("finish") == "stop" else ""
    return f'<article class="sample"><header>{head}</header><p>{before}{body}{end}</p></article>'


def align(text: str, pieces: Sequence[Any], logprobs: Sequence[Any]) -> Iterator[Token]:
    """The tokens of `text` in order, so that their texts together are `text`.

    A token that holds half a character doesn't show it in its piece; such tokens are taken together up to the
    next piece that is found in the text again, and their bits are added.
    """
    place, start = 0, 0
    waiting: list[float | None] = []
    pairs = list(zip(map(str, pieces), map(_bits, logprobs), strict=False))
    for i, (piece, bits) in enumerate(pairs):
        if not waiting and text.startswith(piece, place):
            found = place
        elif waiting and "\ufffd" not in piece and piece:
            # Half characters make at most a few characters: the piece must be near.
            found = text.find(piece, place, place + len(waiting) + len(piece))
        else:
            found = -1
        if found < 0:
            waiting.append(bits)
            continue
        if waiting:
            yield Token(text[place:found], _sum(waiting), start)
            start += _size(text[place:found])
            waiting = []
        if piece:
            yield Token(piece, bits, start)
        start += _size(piece)
        place = found + len(piece)
        if place == len(text) and i + 1 < len(pairs):
            return  # what follows is the end token
    if place < len(text):
        yield Token(text[place:], _sum(waiting) if waiting else None, start)


def _token(token: Token, spans: Sequence[tuple[int, int]]) -> str:
    """One token as HTML: its shade, and a line under what is copied."""
    shade = "" if token.bits is None else f' class="q{sum(token.bits >= b for b in SURPRISE)}"'
    tip = "" if token.bits is None else f' title="{token.bits:.1f} bits"'
    inner, run, place, marked = "", "", token.start, False
    for char in token.text:
        end = place + _size(char)
        copied = any(a < end and place < b for a, b in spans)
        if copied != marked:
            inner += _copied(run, marked)
            run, marked = "", copied
        run += char
        place = end
    return f"<span{shade}{tip}>{inner}{_copied(run, marked)}</span>"


def _copied(text: str, marked: bool) -> str:
    if not text:
        return ""
    return f'<span class="copied">{escape(text, lines=True)}</span>' if marked else escape(text, lines=True)


def _quality(stages: Sequence[Stage]) -> Figure:
    present = [m for m in MEASURES if any(finite(get(s.result, "samples", m)) is not None for s in stages)]
    rows, cells = [], []
    for stage in stages:
        told = mapping(stage.result.get("samples"))
        rows.append([stage.variant, *(told.get(m) for m in present)])
        cells.append([escape(stage.variant), *(_measure(m, told.get(m)) for m in present)])
    real = [get(stages[0].result, "samples", f"reference_{m}") for m in present]
    if any(finite(v) is not None for v in real):
        rows.append(["held-out text", *real])
        cells.append(["held-out text", *(_measure(m, v) for m, v in zip(present, real, strict=True))])
    styles = [""] * len(stages) + ["floor"] * (len(cells) - len(stages))
    return Figure(
        "sample-quality",
        "How varied, how much repeated, how much copied",
        "Compare with the last row, real held-out text of the same lengths: no number is good by being "
        "large, since noise is varied, too.",
        [
            Panel(
                "sample-quality",
                html_table(["text", *(MEASURES[m] for m in present)], cells, styles=styles),
                Table(["variant", *present], rows),
                wide=True,
            )
        ],
    )


def _measure(name: str, value: Any) -> str:
    return percent(value) if name in ("repetition", "copied") else number(value, 3)


def _mean_bits(sample: Mapping[str, Any]) -> float | None:
    bits = [b for b in map(_bits, array(sample.get("logprobs"))) if b is not None]
    return sum(bits) / len(bits) if bits else None


def _bits(logprob: Any) -> float | None:
    known = finite(logprob)
    return None if known is None else max(0.0, -known / math.log(2))


def _sum(bits: Sequence[float | None]) -> float | None:
    known = [b for b in bits if b is not None]
    return sum(known) if known else None


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(finite(v) is not None for v in value)
