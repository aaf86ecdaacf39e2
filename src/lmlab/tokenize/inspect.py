"""Pictures of segmentations: the lattice of a text as SVG, and pieces as printable text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from lmlab.tokenize.checks import check_alpha, check_text, normalized

if TYPE_CHECKING:
    from lmlab.tokenize.tokenizer import Tokenizer

LONGEST = 200  # bytes that are drawn
FAINTEST = 1e-3  # edges with a smaller posterior are only counted
STEP, LEFT, ROW = 18, 12, 22  # a byte's width, the margin, the height of a row of pieces
SHOWN = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}

STYLE = """
text { font: 12px ui-monospace, monospace; fill: #1f2328; text-anchor: middle }
.note { font-family: system-ui, sans-serif; text-anchor: start; fill: #59636e }
.edge { fill: none; stroke: #6f7d8c; stroke-opacity: .55 }
.best { fill: none; stroke: #d55e00 }
.piece { fill: #0072b2; fill-opacity: .12; stroke: #0072b2 }
.other { fill: #009e73; fill-opacity: .12; stroke: #009e73 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .note { fill: #9198a1 } .edge { stroke: #b6c2cf } }
"""


def printable(piece: bytes) -> str:
    """A piece for people: blanks and control characters visible, bytes that are no text in hex."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return " ".join(f"{byte:02x}" for byte in piece)
    return "".join(SHOWN.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)


def lattice_svg(
    tokenizer: Tokenizer, text: str | bytes, *, alpha: float = 1.0, against: Tokenizer | None = None
) -> str:
    """An SVG document: every edge as an arc as wide as its posterior, the best path on top, its pieces below.

    text: at most 200 bytes of it are drawn, and the picture says so. against: another tokenizer, whose best
    segmentation gets a second row.
    """
    check_text(text)
    alpha = check_alpha(alpha)
    full = normalized(text, tokenizer.normalize)
    full = full if isinstance(full, bytes) else full.encode()
    data = _cut(full)
    lattice = tokenizer.lattice(data, alpha=alpha)
    best = tokenizer.offsets(data, tokenizer.encode(data), unit="byte")
    top = 30 + _height(int(np.max(lattice.end - lattice.start, initial=1)))
    drawn = lattice.probability >= FAINTEST
    body = []
    for start, end, i, p in zip(*(column[drawn].tolist() for column in lattice), strict=True):
        label = f"{printable(tokenizer.pieces[i])}: s = {tokenizer.scores[i]:.3f}, posterior {p:.4f}"
        body.append(_arc("edge", start, end, top, max(0.4, 6 * p), label))
    for start, end in best.tolist():
        body.append(_arc("best", start, end, top, 1.6, "on the best path"))
    body += _characters(data, top + 16)
    y = top + 28
    body += _pieces("piece", data, best.tolist(), y)
    if against is not None:
        y += ROW + 4
        cuts = against.offsets(data, against.encode(data), unit="byte")
        body += _pieces("other", data, cuts.tolist(), y)
    notes = [
        f"{len(best)} tokens, expected {tokenizer.marginals(data, alpha=alpha).sum():.2f} at alpha = {alpha:g}; "
        f"entropy {tokenizer.entropy(data, alpha=alpha):.2f} nats; {int((~drawn).sum())} fainter edges not drawn"
    ]
    if against is not None:
        notes.append(f"the other tokenizer (green row): {len(cuts)} tokens")
    if len(data) < len(full):
        notes.append(f"the first {len(data)} of {len(full)} bytes")
    y += ROW
    for note in notes:
        y += 16
        body.append(f'<text class="note" x="{LEFT}" y="{y}">{escape(note)}</text>')
    width = max(2 * LEFT + STEP * len(data), 640)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 12}" '
        f'viewBox="0 0 {width} {y + 12}" role="img" aria-label="lattice of segmentations">'
        f"<style>{STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _cut(data: bytes) -> bytes:
    """At most LONGEST bytes, cut where a character begins."""
    if len(data) <= LONGEST:
        return data
    end = LONGEST
    while end > LONGEST - 3 and data[end] & 0xC0 == 0x80:
        end -= 1
    return data[:end]


def _height(length: int) -> int:
    """Of an arc over so many bytes."""
    return round(14 * math.pow(length, 0.7))


def _arc(kind: str, start: int, end: int, base: int, width: float, label: str) -> str:
    x0, x1 = LEFT + STEP * start, LEFT + STEP * end
    high = base - 4 / 3 * _height(end - start)  # a cubic reaches three quarters of its handles
    return (
        f'<path class="{kind}" stroke-width="{width:.2f}" d="M{x0},{base} C{x0 + 3},{high:.0f} {x1 - 3},{high:.0f} '
        f'{x1},{base}"><title>{escape(label)}</title></path>'
    )


def _characters(data: bytes, y: int) -> list[str]:
    """Each character below its bytes; a byte that belongs to none in hex."""
    found, at = [], 0
    while at < len(data):
        size = next((k for k in (1, 2, 3, 4) if _is_character(data[at : at + k])), 1)
        x = LEFT + STEP * (at + size / 2)
        found.append(f'<text x="{x:g}" y="{y}">{escape(printable(data[at : at + size]))}</text>')
        at += size
    return found


def _is_character(part: bytes) -> bool:
    try:
        return len(part.decode()) == 1
    except UnicodeDecodeError:
        return False


def _pieces(kind: str, data: bytes, cuts: Sequence[Sequence[int]], y: int) -> list[str]:
    return [
        f'<rect class="{kind}" x="{LEFT + STEP * start + 1}" y="{y}" width="{STEP * (end - start) - 2}" '
        f'height="{ROW - 4}" rx="3"><title>{escape(printable(data[start:end]))}</title></rect>'
        for start, end in cuts
    ]
