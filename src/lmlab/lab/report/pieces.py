"""The vocabulary itself: its longest, likeliest and unlikeliest pieces, and how many bytes pieces have."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmlab.lab.report.chart import Bar, bar_chart
from lmlab.lab.report.figure import Figure, Panel, Table, html_table
from lmlab.lab.report.read import Stage, array, mapping, objects, read_object
from lmlab.lab.report.scale import Axis
from lmlab.lab.report.text import amount, escape, finite, number, shorten, visible, whole

TINTS = 4
SHOWN = 12  # pieces of a table
WIDEST = 20  # bytes that have a bar of their own

Piece = tuple[str, int, float]  # text, bytes, log-probability


def figures(stages: Sequence[Stage]) -> list[Figure]:
    """The tables of pieces and the sizes of all pieces, of the tokenizers that are known."""
    tables, sizes = [], []
    for i, stage in enumerate(stages):
        suffix = f"-{i + 1}" if len(stages) > 1 else ""
        of = f"{stage.variant}: " if len(stages) > 1 else ""
        known = vocabulary(stage)
        longest = [_told(p) for p in objects(stage.result.get("longest"))]
        several = [p for p in known if p[1] > 1]
        likely = sorted(several, key=lambda p: -p[2])
        for kind, title, pieces in (
            ("longest", "the longest", longest),
            ("likeliest", "the likeliest", likely[:SHOWN]),
            ("unlikeliest", "the unlikeliest", likely[-SHOWN:]),
        ):
            if pieces:
                tables.append(
                    _table(f"{kind}-pieces{suffix}", (of + title).capitalize(), stage.variant, pieces)
                )
        if known:
            sizes.append(_sizes(f"piece-sizes{suffix}", of, stage.variant, known))
    found = []
    if tables:
        found.append(
            Figure(
                "pieces",
                "Pieces of the vocabulary",
                "What the tokenizer takes for one unit (without single bytes): a long piece is a phrase that the "
                "training text repeats; a dot stands for a space.",
                tables,
            )
        )
    if sizes:
        found.append(
            Figure(
                "piece-sizes",
                "How long pieces are",
                "Number of pieces of each length in bytes; a letter has one byte, a Chinese character three.",
                sizes,
            )
        )
    return found


def vocabulary(stage: Stage) -> list[Piece]:
    """The pieces in tokenizer.json, special tokens left out; empty where the file can't be read."""
    told = read_object(stage.directory / "tokenizer.json")
    special = {whole(number) for number in mapping(told.get("special_tokens")).values()}
    found = []
    for i, pair in enumerate(array(told.get("pieces"))):
        score = finite(pair[1]) if isinstance(pair, list) and len(pair) == 2 else None
        if score is None or i in special:
            continue
        if isinstance(pair[0], str):
            found.append((pair[0], len(pair[0].encode("utf-8", "surrogatepass")), score))
        else:
            digits = str(mapping(pair[0]).get("hex") or "")
            text = "".join(f"\\x{digits[k : k + 2]}" for k in range(0, len(digits), 2))
            found.append((text, len(digits) // 2, score))
    return found


def blank(piece: Any) -> str:
    """A piece as HTML, with its white space to be seen."""
    return escape(piece).replace(" ", "·")


def _told(piece: Mapping[str, Any]) -> tuple[str, Any, Any]:
    return str(piece.get("piece")), piece.get("bytes"), piece.get("score")


def _table(name: str, title: str, variant: str, pieces: Sequence[tuple[str, Any, Any]]) -> Panel:
    rows = [
        [f'<span class="piece p{j % TINTS}">{blank(shorten(text, 40))}</span>', amount(size), number(score)]
        for j, (text, size, score) in enumerate(pieces[:SHOWN])
    ]
    return Panel(
        name,
        html_table(["piece", "bytes", "ln p"], rows),
        Table(["variant", "piece", "bytes", "score"], [[variant, *p] for p in pieces]),
        title=visible(title),
    )


def _sizes(name: str, of: str, variant: str, pieces: Sequence[Piece]) -> Panel:
    counts: dict[int, int] = {}
    for _, size, _ in pieces:
        counts[size] = counts.get(size, 0) + 1
    bars = [Bar(_bytes(size), counts[size]) for size in sorted(counts) if size <= WIDEST]
    rest = sum(count for size, count in counts.items() if size > WIDEST)
    if rest:
        bars.append(Bar(f"over {WIDEST} bytes", rest))
    body = bar_chart(
        name,
        f"{of}pieces of each length",
        "; ".join(f"{b.label} {b.value:.0f}" for b in bars),
        bars,
        Axis("pieces"),
        form=lambda count: number(count, 0),
    )
    rows = [[variant, size, counts[size]] for size in sorted(counts)]
    return Panel(
        name, body, Table(["variant", "bytes", "pieces"], rows), title=of.removesuffix(": "), wide=True
    )


def _bytes(size: int) -> str:
    return "1 byte" if size == 1 else f"{size} bytes"
