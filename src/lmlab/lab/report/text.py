"""Text and numbers as a reader sees them. Everything that comes from a run passes through here."""

import hashlib
import re
import unicodedata
from html import escape as _html
from typing import Any

GAP = "\u00a0"  # between a number and its unit: no line ends there
LARGEST = 1e300  # of a number that a run can have measured: sums and differences of such ones stay finite
LONGEST_NAME = 80  # of a file, before its number and ending
JOINERS = "\u200c\u200d"  # format characters that scripts and emoji need, and that hide nothing


def visible(text: Any, *, lines: bool = False) -> str:
    """`text` with control, bidi, other invisible and unassigned characters as escapes such as \\u202e.

    lines: line breaks and tabs stay as they are (where the page keeps white space).
    """
    return "".join(
        char if _shown(char) or (lines and char in "\n\t") else _escape(char) for char in str(text)
    )


def escape(text: Any, *, lines: bool = False) -> str:
    """`visible`, then fit for HTML and SVG, in text and in quoted attributes alike."""
    return _html(visible(text, lines=lines), quote=True)


def shorten(text: Any, limit: int) -> str:
    """At most `limit` characters, the last an ellipsis where some were cut."""
    whole = str(text)
    return whole if len(whole) <= limit else whole[: limit - 1] + "…"


def slug(text: str) -> str:
    """Fit for the name of a file and for an id: a long text is cut, and told apart by a hash of the whole."""
    name = re.sub("[^A-Za-z0-9_-]", "-", text)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"


def finite(value: Any) -> float | None:
    """`value` if it is a number up to LARGEST, else None (a run writes null for what it couldn't measure)."""
    if isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST:
        return value
    return None


def whole(value: Any) -> int | None:
    """`value` as an integer if it is a number below 2^53: nothing that a run counts goes beyond."""
    known = finite(value)
    return None if known is None or abs(known) >= 2**53 else int(known)


def number(value: Any, digits: int = 2) -> str:
    """Fixed digits with a true minus; a dash for what isn't there."""
    known = finite(value)
    return "–" if known is None else f"{known:,.{digits}f}".replace("-", "−")


def signed(value: Any, digits: int = 3) -> str:
    """A difference: with its sign, which a zero hasn't."""
    known = finite(value)
    if known is None:
        return "–"
    text = f"{known:+,.{digits}f}"
    return text.replace("-", "−") if text.strip("+-0.,") else text[1:]


def short(value: float) -> str:
    """Three figures and a unit prefix: 1.23 M, 9,400, 0.006, 2.1e−5."""
    size = abs(value)
    for bound, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= bound:
            return f"{_trim(value / (bound if bound > 1e4 else 1e3))}{GAP}{unit}"
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}".replace("-", "−")
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{_trim(float(mantissa))}e{int(exponent)}".replace("-", "−")
    return _trim(value)


def amount(value: Any) -> str:
    """`short`, or a dash."""
    known = finite(value)
    return "–" if known is None else short(known)


def percent(value: Any) -> str:
    known = finite(value)
    if known is None:
        return "–"
    return f"{100 * known:.1f}{GAP}%" if 0 < abs(known) < 0.1 else f"{100 * known:.0f}{GAP}%"


def duration(seconds: Any) -> str:
    """0.4 s, 12 s, 2 min 10 s, 1 h 5 min."""
    known = finite(seconds)
    if known is None:
        return "–"
    if known < 10:
        return f"{known:.1f}{GAP}s"
    whole = round(known)
    if whole < 60:
        return f"{whole}{GAP}s"
    if whole < 3600:
        return f"{whole // 60}{GAP}min {whole % 60}{GAP}s"
    return f"{whole // 3600}{GAP}h {whole % 3600 // 60}{GAP}min"


def listing(parts: list[str]) -> str:
    """a, b and c"""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def _trim(value: float) -> str:
    text = f"{value:.3g}"
    return text.replace("-", "−")


def _shown(char: str) -> bool:
    return unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"} or char in JOINERS


def _escape(char: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    code = ord(char)
    return named.get(char) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
