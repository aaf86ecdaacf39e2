"""Hostile text in every place of a report: escaped in the page, inert in a real browser."""

import copy
import json
import random
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from campaign.conftest import Tally
from lab.browser import Browser, chromium
from lab.synthetic_run import write_run
from lmlab.lab.report import write_report

PAYLOADS = [
    "<script>document.title='owned'</script>",
    "</title></style></head><body onload=alert(1)><img src=x onerror=alert(1)>",
    "</svg></text></desc><svg onload=alert(1)><image href='http://a.example/x.png'/>",
    "\"' onmouseover='alert(1)' style='background:url(http://a.example/x)' x=\"",
    "]]><![CDATA[<a href='javascript:alert(1)'>-->",
    "<base href='http://a.example/'><meta http-equiv='refresh' content='0;url=http://a.example/'>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe><form action='http://a.example'><input name=a>",
    "&lt;script&gt;alert(1)&lt;/script&gt;&#60;b&#62;&#0;&nosuch;",
    "\u202e\u2066\u200b\u0000\u001b[31m\ufeff\ud800\x07",
    "=cmd|' /C calc'!A0\n@SUM(1)\t\r\n,\"x",
    "{{7*7}}${7*7}%s%n{0}\\u003cscript\\u003e",
    "Z\u0351" * 200 + "漢" * 500,
]
ALLOWED = set(
    "html head meta link title style body header p h1 h2 h3 h4 strong small span ul li a dl div dt dd nav main section "
    "figure figcaption table thead tbody tr th td svg desc g rect line polyline polygon circle ellipse text tspan "
    "path code pre details summary footer article br".split()
)
SEEN = """
({
  tags: [...new Set([...document.querySelectorAll('*')].map(e => e.tagName.toLowerCase()))],
  handlers: [...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on')),
  links: [...document.querySelectorAll('[href], [src], [action]')].map(e =>
    e.getAttribute('href') || e.getAttribute('src') || e.getAttribute('action')),
  title: document.title,
})
"""
LOUD = (
    "Runtime.consoleAPICalled",
    "Runtime.exceptionThrown",
    "Log.entryAdded",
    "Page.javascriptDialogOpening",
)
STAGES = ("corpus", "tokenize", "train", "evaluate", "generate", "autophagy", "compare")
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where the strings and numbers of a JSON value are; of a long array of alike things the first two."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:2]):
            yield from places(inner, (*at, i))
    else:
        yield at


def put(value: Any, at: Place, new: Any) -> Any:
    if not at:
        return new
    changed = copy.copy(value)
    changed[at[0]] = put(value[at[0]], at[1:], new)
    return changed


def stained(value: Any, payload: str) -> Any:
    """Every string and every key that is data, with the payload."""
    if isinstance(value, dict):
        return {k: stained(v, payload) for k, v in value.items()}
    if isinstance(value, list):
        return [stained(v, payload) for v in value]
    return value + payload if isinstance(value, str) else value


KEPT = ("stage", "variant", "directory", "event")  # what they say decides what is drawn at all


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8", errors="surrogatepass")


def files_of(run: Path) -> list[Path]:
    return [
        run / "versions.json",
        *sorted(run.glob("stages/*/stage.json")),
        *sorted(run.glob("stages/*/tokenizer.json")),
    ]


def checked(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    root = ET.fromstring(text)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= ALLOWED, tags - ALLOWED
    for element in root.iter():
        assert not any(name.startswith("on") for name in element.attrib), element.attrib


def everywhere(run: Path, payload: str) -> None:
    """The payload after every string of every file of a run."""
    for file in files_of(run):
        told = read_json(file)
        result = {k: stained(v, payload) if k not in KEPT else v for k, v in told.items()}
        write_json(file, result)
    for file in run.glob("stages/*/samples.jsonl"):
        rows = [stained(json.loads(line), payload) for line in file.read_text(encoding="utf-8").splitlines()]
        file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    rows = [
        {"stage": "train" + payload, "event": "warning", "text": payload},
        {"event": "retries", "name": payload, "retries": 1, "recovered": 1, "gave_up": 0, "slept": 1.0},
        {
            "stage": "train",
            "event": "step",
            "variant": payload,
            "step": 1,
            "tokens": 5,
            "loss": 1.0,
            payload: 2.0,
        },
    ]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    listed = read_json(run / "stages.json")
    write_json(run / "stages.json", [{**e, "variant": e["variant"] + payload} for e in listed])
    name = json.dumps(payload.encode("utf-8", "ignore").decode()).replace("\\u007f", "")
    (run / "recipe.toml").write_text(f"name = {name}\n", encoding="utf-8")


def opened(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    seen = browser.evaluate(SEEN)
    assert [params for method, params in browser.events if method in LOUD] == []
    asked = [p["request"]["url"] for method, p in browser.events if method == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert set(seen["tags"]) <= ALLOWED, set(seen["tags"]) - ALLOWED
    assert seen["handlers"] == []
    assert all(link.startswith(("#", "data:,")) for link in seen["links"]), seen["links"]
    assert seen["title"] != "owned"


def in_the_browser(folder: Path, payloads: list[str]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    with Browser() as browser:
        for i, payload in enumerate(payloads):
            run = write_run(folder / str(i), stages=STAGES, copy=True, scale="mup")
            everywhere(run, payload)
            page = write_report(run)
            checked(page)
            for width in (400, 1400):
                opened(browser, page, width)
            for drawing in sorted((run / "figures").glob("*.svg"))[:6]:
                browser.open(drawing, width=900)
                assert [p for method, p in browser.events if method in LOUD] == []
            outcomes["nothing but text in the browser"] += 1
    return outcomes


def one_by_one(folder: Path, share: float, seed: int) -> Counter[str]:
    """Each place of each file alone, strings and numbers, with text, a number, null, a list, an object."""
    draw = random.Random(seed)
    outcomes: Counter[str] = Counter()
    source = write_run(folder / "source", stages=STAGES, copy=True)
    run = folder / "run"
    shutil.copytree(source, run)
    for file in files_of(run):
        told = read_json(file)
        for place in places(told):
            if draw.random() > share:
                continue
            new = draw.choice(
                [draw.choice(PAYLOADS), draw.choice(PAYLOADS), -1, 1e308, None, [], {}, True, [[0]], 2**63]
            )
            write_json(file, put(told, place, new))
            try:
                checked(write_report(run))
            except Exception as error:
                raise AssertionError(f"{file.parent.name}/{file.name} {place}: {new!r}") from error
            outcomes["a sound page"] += 1
        write_json(file, told)
    return outcomes


needs_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium on PATH")


@pytest.mark.browser
@needs_browser
def test_a_hostile_text_in_the_browser(tmp_path: Path) -> None:
    in_the_browser(tmp_path, [PAYLOADS[1], PAYLOADS[8]])


def test_some_places_one_by_one(tmp_path: Path) -> None:
    assert one_by_one(tmp_path, 0.02, seed=1)["a sound page"] > 5


@pytest.mark.campaign
@pytest.mark.browser
@needs_browser
@pytest.mark.timeout(3600)
def test_every_hostile_text_in_the_browser(tmp_path: Path, tally: Tally) -> None:
    tally(
        "hostile text in every place of the report at once, in Chromium", in_the_browser(tmp_path, PAYLOADS)
    )


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_every_place_one_by_one(tmp_path: Path, tally: Tally) -> None:
    tally(
        "each value that the report reads replaced alone, by text, numbers and things",
        one_by_one(tmp_path, 1.0, seed=2),
    )
