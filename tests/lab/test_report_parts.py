"""The parts of the report alone: escapes, scales, charts, and tokens laid over their text."""

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.lab.report.autophagy import _ellipse
from lmlab.lab.report.chart import Axis, Bar, Rule, Series, bar_chart, heat_map, line_chart
from lmlab.lab.report.samples import Token, align
from lmlab.lab.report.scale import fit
from lmlab.lab.report.text import amount, duration, escape, listing, number, percent, short, slug, visible

anything = st.text(st.characters(), max_size=30)  # surrogates, too
numbers = st.floats(-1e9, 1e9)


@given(anything, st.booleans())
def test_escaped_text_is_text_in_xml(text: str, lines: bool) -> None:
    escaped = escape(text, lines=lines)
    element = ET.fromstring(f'<a b="{escaped}">{escaped}</a>')
    assert element.text == (visible(text, lines=lines) or None)
    escaped.encode("utf-8")


def test_escapes() -> None:
    assert visible("a\n\t\x00\x9f\u202e\u2069\ufeff\ud800\U000e0041") == (
        "a\\n\\t\\x00\\x9f\\u202e\\u2069\\ufeff\\ud800\\U000e0041"
    )
    assert visible("a\nb\r", lines=True) == "a\nb\\r"
    assert visible("床前é👩\u200d🔬") == "床前é👩\u200d🔬"
    assert escape("<\"'&>") == "&lt;&quot;&#x27;&amp;&gt;"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (short(0), "0"),
        (short(1.5), "1.5"),
        (short(-9402), "−9,402"),
        (short(1_378_944), "1.38 M"),
        (short(65536), "65.5 k"),
        (short(2.1e-5), "2.1e−5"),
        (number(None), "–"),
        (number(float("nan")), "–"),
        (number(-0.394), "−0.39"),
        (amount(True), "–"),
        (percent(0.024), "2.4 %"),
        (percent(0.62), "62 %"),
        (duration(0.42), "0.4 s"),
        (duration(131), "2 min 11 s"),
        (duration(3900), "1 h 5 min"),
        (listing([]), ""),
        (listing(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_for_readers(given: str, expected: str) -> None:
    assert given.replace("\u00a0", " ") == expected


@given(st.lists(numbers, max_size=6))
def test_a_linear_scale_holds_its_values(values: list[float]) -> None:
    scale = fit(Axis(""), values)
    assert scale.low < scale.high
    assert all(-1e-6 <= scale.place(v) <= 1 + 1e-6 for v in values)
    assert 2 <= len(scale.ticks) <= 12


@given(st.lists(st.floats(1e-9, 1e9), max_size=6))
def test_a_logarithmic_scale_holds_its_values(values: list[float]) -> None:
    scale = fit(Axis("", log=True), values)
    assert all(-1e-6 <= scale.place(v) <= 1 + 1e-6 for v in values)


points = st.lists(st.tuples(numbers, st.one_of(st.none(), numbers)), max_size=5)


@given(st.lists(points, max_size=4), st.booleans(), anything)
def test_any_line_chart_is_well_formed(
    lines: list[list[tuple[float, float | None]]], log: bool, name: str
) -> None:
    series = [Series(name, line, i, dashed=bool(i % 2)) for i, line in enumerate(lines)]
    drawn = line_chart("n", name, name, series, Axis(name, log=log), Axis(name), rules=[Rule("x", 1.0, name)])
    for one in (drawn.full, drawn.small):
        ET.fromstring(one)
        rest = one.replace(escape(name), "")
        assert "nan" not in rest
        assert "inf" not in rest


@given(st.lists(st.tuples(anything, st.floats(0, 1e6)), min_size=1, max_size=5))
def test_any_bar_chart_is_well_formed(bars: list[tuple[str, float]]) -> None:
    drawn = bar_chart("n", "t", "d", [Bar(a, b, dots=[b]) for a, b in bars], Axis("x"))
    for one in (drawn.full, drawn.small):
        assert len(ET.fromstring(one).findall("{http://www.w3.org/2000/svg}rect")) == len(bars)


def test_a_heat_map_shows_gaps() -> None:
    values = [[1.0, None], [0.0, math.nan]]
    drawn = heat_map("n", "t", "d", ["a", "b"], ["c", "d"], values, row_label="r", column_label="c").full
    assert drawn.count('class="cell"') == 2
    assert drawn.count('class="empty"') == 2


@given(st.lists(st.tuples(st.text("ab月\n", min_size=1, max_size=3), st.floats(-9, 0)), max_size=8))
def test_tokens_cover_their_text(tokens: list[tuple[str, float]]) -> None:
    text = "".join(piece for piece, _ in tokens)
    found = list(align(text, [*(p for p, _ in tokens), "<eos>"], [*(x for _, x in tokens), -0.1]))
    assert [t.text for t in found] == [piece for piece, _ in tokens]
    assert [t.start for t in found] == [
        len(text[: text_start(tokens, i)].encode()) for i in range(len(found))
    ]
    for token, (_, logprob) in zip(found, tokens, strict=True):
        assert token.bits == pytest.approx(-logprob / math.log(2))


def text_start(tokens: list[tuple[str, float]], index: int) -> int:
    return sum(len(piece) for piece, _ in tokens[:index])


def test_parts_of_a_character_are_one_stretch() -> None:
    bit = -math.log(2)
    found = list(align("a月光b", ["a", "\ufffd", "\ufffd", "\ufffd", "光", "b"], [bit] * 6))
    assert found == [
        Token("a", pytest.approx(1.0), 0),
        Token("月", pytest.approx(3.0), 1),
        Token("光", pytest.approx(1.0), 4),
        Token("b", pytest.approx(1.0), 7),
    ]


@given(anything, st.lists(anything, max_size=6))
def test_tokens_that_do_not_fit_lose_no_text(text: str, pieces: list[str]) -> None:
    assert "".join(t.text for t in align(text, pieces, [None] * len(pieces))) == text


def test_an_ellipse_is_two_standard_deviations_away() -> None:
    a, b, d = 2.0, 0.6, 1.0
    determinant = a * d - b * b
    for x, y in _ellipse(a, b, d, 1.0, -1.0):
        assert y is not None
        u, v = x - 1.0, y + 1.0
        assert (d * u * u - 2 * b * u * v + a * v * v) / determinant == pytest.approx(4.0)


def test_a_long_name_is_cut_and_stays_its_own() -> None:
    long = "x" * 300
    assert len(slug(long)) < 100 and slug(long) != slug(long + "y") and slug("p@1/é") == "p-1--"
