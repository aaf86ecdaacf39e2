"""The report as a browser shows it: nothing asked for, nothing complained about, everything on the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.browser import Browser, chromium
from lab.synthetic_run import write_run
from lmlab.lab.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        chromium() is None, reason="no Chromium on PATH: the report isn't opened in a browser"
    ),
]

MEASURE = """
({
  scroll: document.documentElement.scrollWidth,
  figures: [...document.querySelectorAll('figure')].map(f => {
    const box = f.getBoundingClientRect();
    return {name: f.id, width: box.width, height: box.height,
            marks: f.querySelectorAll('svg rect, svg polyline, td, .sample, .piece, li, p').length};
  }),
  hidden: [...document.querySelectorAll('svg')].filter(s => !s.getClientRects().length).length,
  drawings: [...document.querySelectorAll('svg')].filter(s => s.getClientRects().length).map(s => {
    const box = s.getBoundingClientRect(), view = s.viewBox.baseVal;
    return {name: s.querySelector('title').textContent, width: box.width, height: box.height,
            marks: s.querySelectorAll('rect, polyline, circle, polygon, path').length,
            cut: [...s.querySelectorAll('text')].filter(t => {
              const b = t.getBBox();
              const right = b.x + b.width - view.width, below = b.y + b.height - view.height;
              return b.x < -3 || right > 3 || b.y < -3 || below > 3;
            }).map(t => t.textContent)};
  }),
  colours: [...document.querySelectorAll('h1, p, td, th, code, svg text')].map(e => {
    const style = getComputedStyle(e);
    return e.closest('svg') ? style.fill : style.color;
  }),
  paper: getComputedStyle(document.body).backgroundColor,
  scripts: document.scripts.length,
})
"""
STUDY = ("corpus", "tokenize", "train", "evaluate", "generate", "compare")
LOUD = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("runs")
    return {
        "hostile": write_report(write_run(home / "hostile", hostile=True)),
        "variants": write_report(write_run(home / "variants", variants=("base", "vq"), seeds=3)),
        "study": write_report(write_run(home / "study", stages=STUDY, copy=True, scale="mup", hostile=True)),
        "half": write_report(write_run(home / "half", stages=("corpus", "tokenize"))),
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", ["hostile", "variants", "study", "half"])
def test_the_report_is_quiet_and_whole(
    browser: Browser, reports: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(reports[name], width=width, dark=dark)
    seen = browser.evaluate(MEASURE)

    assert [params for method, params in browser.events if method in LOUD] == []
    asked = [p["request"]["url"] for method, p in browser.events if method == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [reports[name].as_uri()]
    assert seen["scripts"] == 0

    assert seen["scroll"] <= width
    assert seen["figures"]
    boxes = seen["figures"] + seen["drawings"]
    assert [b for b in boxes if b["width"] <= 200 or b["height"] <= 120 or not b["marks"]] == []
    assert len(seen["drawings"]) == seen["hidden"]  # each once, for a page or for a phone
    assert [d["cut"] for d in seen["drawings"] if d["cut"]] == []

    paper = luminance(seen["paper"])
    assert (paper < 0.05) == dark
    for colour in set(seen["colours"]):
        text = luminance(colour)
        assert contrast(text, paper) >= 4.5, colour


def test_drawings_stand_alone_too(browser: Browser, reports: dict[str, Path]) -> None:
    for path in sorted((reports["hostile"].parent / "figures").glob("*.svg")):
        browser.open(path, width=900)
        assert browser.evaluate("document.querySelectorAll('polyline, rect, path').length") > 0
        assert [params for method, params in browser.events if method in LOUD] == []
        stroke = browser.evaluate(
            "getComputedStyle(document.querySelector('.line, .bar, .cell'))[0] && "
            "[...document.querySelectorAll('.line')].every(e => getComputedStyle(e).stroke !== 'none')"
        )
        assert stroke


def luminance(colour: str) -> float:
    """Relative luminance (WCAG) of rgb(r, g, b)."""
    parts = [float(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
