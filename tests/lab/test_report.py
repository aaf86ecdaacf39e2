"""The report: whole for any run, escaped whatever the text, with the numbers of every figure beside it."""

import csv
import json
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from statistics import stdev

import pytest

from lab.synthetic_run import BASELINES, HOSTILE, write_run
from lmlab.lab.report import write_report
from lmlab.lab.report.length import section as length_section
from lmlab.lab.report.page import POLICY
from lmlab.lab.report.read import read_run
from lmlab.lab.report.summary import findings, verdict

SVG = "{http://www.w3.org/2000/svg}"
ALL = ["autophagy", "length", "notes", "samples", "summary", "tokenizer", "training"]


class Reader(HTMLParser):
    """What an HTML parser sees: tags with attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def lines(path: Path) -> list[list[str]]:
    """The rows of a CSV file, its head first."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def records(path: Path) -> list[dict[str, str]]:
    head, *rows = lines(path)
    return [dict(zip(head, row, strict=True)) for row in rows]


def parsed(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def tree(page: Path) -> ET.Element:
    return ET.fromstring(page.read_text(encoding="utf-8"))


STUDY = ("corpus", "tokenize", "train", "evaluate", "generate", "compare")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "hostile", hostile=True))


def test_hostile_texts_stay_text(hostile: Path) -> None:
    seen = parsed(hostile)
    names = {tag for tag, _ in seen.tags}
    assert not names & {"script", "iframe", "object", "embed", "img", "form", "base", "foreignobject"}
    assert not [a for _, attrs in seen.tags for a in attrs if a.startswith("on")]
    assert "<script>alert(1)</script></svg>]]>\"'&amp;" in "".join(seen.words)


def test_control_and_bidi_characters_are_shown_as_escapes(hostile: Path) -> None:
    files = [hostile, *hostile.parent.glob("figures/*")]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not [c for c in HOSTILE if ord(c) < 32 or ord(c) > 0x2000 if c in text], path.name
    page = hostile.read_text(encoding="utf-8")
    assert "\\x00" in page
    assert "\\u202eevil\\u2066\\u200b" in page


def test_the_page_is_well_formed_and_asks_for_nothing(hostile: Path) -> None:
    root = tree(hostile)
    metas = [m.get("content") for m in root.iter("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert metas == [POLICY]
    for element in root.iter():
        for name in ("src", "href", "srcset", "action", "data", "{http://www.w3.org/1999/xlink}href"):
            link = element.get(name)
            assert link is None or link == "data:," or link.startswith("#"), link
    assert "url(" not in hostile.read_text(encoding="utf-8")
    assert "@import" not in hostile.read_text(encoding="utf-8")


def test_every_part_is_there_and_links_lead_to_it(hostile: Path) -> None:
    root = tree(hostile)
    parts = {s.get("id") for s in root.iter("section")}
    assert sorted(map(str, parts)) == sorted([*ALL, "inside"])
    links = {a.get("href", "").removeprefix("#") for a in root.iter("a")}
    assert {str(p) for p in parts} <= links <= {e.get("id") for e in root.iter()}


def test_each_figure_says_how_to_read_it_and_where_its_numbers_are(hostile: Path) -> None:
    figures = list(tree(hostile).iter("figure"))
    assert len(figures) >= 15
    for figure in figures:
        assert "".join(figure.find("h3").itertext()).strip()
        assert "".join(figure.find("p[@class='reading']").itertext()).endswith(".")
        for code in figure.find("figcaption").iter("code"):
            path = hostile.parent / "".join(code.itertext())
            rows = lines(path)
            assert len(rows) > 1 or path.name == "warnings.csv"
            assert {len(row) for row in rows} == {len(rows[0])}


def test_drawings_have_names_and_unique_ids(hostile: Path) -> None:
    root = tree(hostile)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    drawings = list(root.iter(f"{SVG}svg"))
    assert len(drawings) >= 10
    for drawing in drawings:
        labels = drawing.get("aria-labelledby", "").split()
        assert len(labels) == 2
        assert set(labels) <= set(ids)
        assert drawing.find(f"{SVG}title").text
        assert drawing.find(f"{SVG}desc").text


def test_each_drawing_is_a_file_that_stands_alone(hostile: Path) -> None:
    files = sorted(hostile.parent.glob("figures/*.svg"))
    assert 2 * len(files) == len(list(tree(hostile).iter(f"{SVG}svg")))
    for path in files:
        root = ET.parse(path).getroot()
        assert "--s0" in root.find(f"{SVG}style").text
        assert path.with_suffix(".csv").is_file()


@pytest.mark.parametrize(
    "stages",
    [
        (),
        ("corpus",),
        ("corpus", "tokenize"),
        ("corpus", "tokenize", "train"),
        ("corpus", "tokenize", "train", "evaluate"),
        ("corpus", "tokenize", "train", "evaluate", "generate"),
        ("autophagy",),
    ],
)
def test_a_run_that_was_stopped_has_a_report(tmp_path: Path, stages: tuple[str, ...]) -> None:
    page = write_report(write_run(tmp_path / "run", stages=stages))
    root = tree(page)
    inside = ["inside"] if "evaluate" in stages else []
    assert sorted(s.get("id", "") for s in root.iter("section")) == sorted([*ALL, *inside])
    unfinished = "This run is not finished" in page.read_text(encoding="utf-8")
    assert unfinished == (len(stages) < 5)


def test_parts_that_the_recipe_leaves_out_say_so(tmp_path: Path) -> None:
    stages = ("corpus", "tokenize", "train", "evaluate", "generate")
    page = write_report(write_run(tmp_path / "run", stages=stages, length=False)).read_text(encoding="utf-8")
    assert "No length test ran" in page
    assert "No loop ran" in page
    assert "This run is not finished" not in page


def test_numbers_that_are_null_leave_gaps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")

    def hollow(value: object) -> object:
        if isinstance(value, dict):
            return {k: hollow(v) for k, v in value.items()}
        if isinstance(value, list):
            return [hollow(v) for v in value]
        return None if isinstance(value, float) else value

    for path in run.glob("stages/*/stage.json"):
        path.write_text(json.dumps(hollow(json.loads(path.read_text()))))
    for path in run.glob("stages/*/samples.jsonl"):
        path.write_text("\n".join(json.dumps(hollow(json.loads(x))) for x in path.read_text().splitlines()))
    tree(write_report(run))
    for path in run.glob("stages/*/stage.json"):
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, "result": {k: None for k in told["result"]}}))
    tree(write_report(run))


def test_warnings_are_in_full_and_counted(hostile: Path) -> None:
    items = ["".join(li.itertext()) for li in tree(hostile).iter("li") if li.find("strong") is not None]
    assert items[0] == "corpus: the corpus holds one document twice (2 times)"
    assert items[1].startswith("corpus: bfloat16 is slower here\nthan float32<script>")
    assert len(items) == 2


def test_the_small_print(hostile: Path) -> None:
    words = "".join(tree(hostile).itertext())
    for expected in (
        "lmlab run demo --out runs/demo",
        "invalid UTF-8",
        "torch",
        "2.13.0",
        "sample/kjv.jsonl",
    ):
        assert expected in words


def test_again_is_the_same_and_old_figures_go(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    old = [run / "figures" / "old.svg", run / "figures" / "old.csv"]
    for path in old:
        path.write_text("from an older report")
    mine = run / "figures" / "notes.txt"
    mine.write_text("a user's own")
    assert write_report(run).read_bytes() == first
    assert not any(path.exists() for path in old)
    assert mine.exists()


def test_variants_share_stages_and_seeds_are_averaged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", variants=("base", "vq"), seeds=3)
    write_report(run)
    rows = {r["variant"]: r for r in records(run / "figures/summary.csv")}
    assert list(rows) == ["base", "vq", *BASELINES]
    found = [s.result["bits_per_byte"] for s in read_run(run).of("evaluate", "vq")]
    assert len(found) == 3
    assert float(rows["vq"]["bits_per_byte"]) == pytest.approx(sum(found) / 3)
    base = [s.result["bits_per_byte"] for s in read_run(run).of("evaluate", "base")]
    gaps = [a - b for a, b in zip(found, base, strict=True)]
    assert float(rows["vq"]["difference"]) == pytest.approx(sum(gaps) / 3)
    half = 4.302653 * stdev(gaps) / 3**0.5  # Student's, 95 %, two degrees of freedom
    assert float(rows["vq"]["low"]) == pytest.approx(sum(gaps) / 3 - half, rel=1e-5)
    assert float(rows["vq"]["high"]) == pytest.approx(sum(gaps) / 3 + half, rel=1e-5)
    assert rows["base"]["difference"] == ""
    times = records(run / "figures/stage-times.csv")
    assert sum(t["stage"] == "corpus" for t in times) == 1
    assert sum(t["stage"] == "train" for t in times) == 6


def words(html: str) -> str:
    return "".join(ET.fromstring(f"<p>{html}</p>").itertext())


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (2.31, "2.31 bits per byte: below zlib 4.18 and lzma 2.70 on the same held-out bytes."),
        (3.0, "3.00 bits per byte: below zlib 4.18, but not below lzma 2.70, on the same held-out bytes."),
        (5, "5.00 bits per byte: not below zlib 4.18 and lzma 2.70 on the same held-out bytes, so a general"),
    ],
)
def test_the_verdict(tmp_path: Path, bits: float, expected: str) -> None:
    run = write_run(tmp_path / "run")
    path = next(run.glob("stages/evaluate-*/stage.json"))
    told = json.loads(path.read_text())
    told["result"]["bits_per_byte"] = bits
    path.write_text(json.dumps(told))
    assert words(verdict(read_run(run))).startswith(expected)


def test_the_verdict_of_variants_warns_of_noise(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", variants=("base", "vq"))
    assert words(verdict(read_run(run))).startswith("Best of 2 variants, base: ")
    assert any("Fewer than three seeds" in r for r in findings(read_run(run)))
    for path in run.glob("stages/evaluate-*/stage.json"):
        told = json.loads(path.read_text())
        told["result"]["bits_per_byte"] = 2.31 + 0.001 * (told["variant"] == "vq")
        path.write_text(json.dumps(told))
    assert any("0.001 bits apart" in r for r in findings(read_run(run)))


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", stages=("corpus",)))
    assert verdict(run) == "No model has been measured in this run yet."


def test_a_list_that_leads_out_of_the_run_is_not_followed(tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    run = write_run(tmp_path / "run", stages=("corpus",))
    stage = next(other.glob("stages/train-*"))
    (run / "stages.json").write_text(
        json.dumps([{"stage": "train", "directory": f"../other/stages/{stage.name}"}])
    )
    assert read_run(run).stages == ()


def test_without_a_list_the_stage_directories_are_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "stages.json").unlink()
    assert {s.stage for s in read_run(run).stages} >= {"corpus", "train", "evaluate"}


def test_a_damaged_stage_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    next(run.glob("stages/evaluate-*/stage.json")).write_text('{"stage": "eval')
    assert read_run(run).of("evaluate") == []
    assert "No model has been measured" in write_report(run).read_text(encoding="utf-8")


def test_quality_is_never_drawn_without_diversity(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = next(run.glob("stages/autophagy-*/stage.json"))
    told = json.loads(path.read_text())
    for arm in told["result"]["arms"]:
        arm["metrics"] = {"bits_per_byte": arm["metrics"]["bits_per_byte"]}
    path.write_text(json.dumps(told))
    page = write_report(run)
    assert not list(run.glob("figures/loops*.svg"))
    assert "and no diversity" in page.read_text(encoding="utf-8")


def test_length_figures_mark_the_trained_length(tmp_path: Path) -> None:
    figures = {f.name: f for f in length_section(read_run(write_run(tmp_path / "run"))).figures}
    assert list(figures) == ["loss-by-context", "loss-by-position", "length-table", "distances", "passkey"]
    for name in ("loss-by-context", "loss-by-position"):
        assert "trained on 256 tokens" in figures[name].panels[0].html
    assert "line grey dashed" in figures["loss-by-context"].panels[0].html


def test_pieces_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_report(run)
    sizes = {int(r["bytes"]): int(r["pieces"]) for r in records(run / "figures/piece-sizes.csv")}
    assert sizes == {1: 2, 4: 1, 6: 1}
    assert [r["piece"] for r in records(run / "figures/likeliest-pieces.csv")] == [" the", "月光"]
    next(run.glob("stages/tokenize-*/tokenizer.json")).write_text('{"pieces": [1, ["a", "b"], [[], 2]]}')
    tree(write_report(run))


def test_measures_of_the_steps_are_drawn_where_they_say_more_than_the_loss(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_report(run)
    assert len(records(run / "figures/training-accuracy.csv")) == 600
    assert not (run / "figures/training-ce.csv").exists()


def test_a_training_under_way_is_drawn_from_the_log(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=("corpus", "tokenize"))

    def step(n: int, loss: float) -> str:
        told = {"stage": "train", "event": "step", "variant": "base", "seed": 0, "step": n, "tokens": 10 * n}
        return json.dumps({**told, "loss": loss, "lr": 0.01})

    # One that was killed at step 9, one that went on from step 2, and before both an older recipe.
    resume = json.dumps({"stage": "train", "event": "resume", "variant": "base", "seed": 0, "step": 2})
    lines = [
        *(step(n, 1) for n in range(1, 20)),
        *(step(n, 8) for n in range(1, 10)),
        resume,
        step(3, 7),
        step(4, 6),
    ]
    (run / "log.jsonl").write_text("\n".join(lines))
    assert "Not finished yet: base" in write_report(run).read_text(encoding="utf-8")
    found = [(int(r["step"]), float(r["loss"])) for r in records(run / "figures/loss.csv")]
    assert found == [(1, 8), (2, 8), (3, 7), (4, 6)]
    assert not (run / "figures/training-seed.csv").exists()


def test_distances_are_those_of_the_methods(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_report(run)
    found: dict[str, dict[tuple[int, int], float]] = {}
    for row in records(run / "figures/distances.csv"):
        pair = int(row["query"]), int(row["key"])
        found.setdefault(row["method"], {})[pair] = float(row["distance"])
    assert list(found) == ["none", "window", "ntkaware", "rerope(window=64)"]
    for (i, j), delta in found["none"].items():
        assert delta == i - j >= 0
        assert found["ntkaware"][i, j] == delta
        assert found["rerope(window=64)"][i, j] == min(delta, 64)
        assert ((i, j) in found["window"]) == (delta < 256)


def test_a_method_of_another_version_is_not_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = next(run.glob("stages/evaluate-*/stage.json"))
    told = json.loads(path.read_text())
    for table in ({"method": "unheard-of"}, {"window": 3}, 7):
        told["settings"]["evaluate"]["length"]["extensions"] = [table]
        path.write_text(json.dumps(told))
        write_report(run)
        assert {r["method"] for r in records(run / "figures/distances.csv")} == {"none", "window"}


def test_what_came_out_is_said_in_sentences(tmp_path: Path) -> None:
    page = tree(write_report(write_run(tmp_path / "run")))
    said = ["".join(li.itertext()).replace("\u00a0", " ") for li in page.find(".//ul[@class='findings']")]
    assert (
        said[0]
        == "Of its samples 12 % stand word for word in the training text (of real held-out text: 8.0 %)."
    )
    assert said[1] == (
        "At 1,024 tokens, 4 times the trained length, rerope(window=64) is 0.050 nats a token below a "
        "plain window (the model as it is: 2.890 nats a token above)."
    )
    assert said[2] == "The codes beyond the window of base lower its loss by 0.030 nats a token."
    assert said[3].startswith(
        "An n-gram model fed on its own output for 5 generations (synthetic): bits per byte"
    )
    assert said[4] == "The run gave 2 warnings."


@pytest.mark.bad_input
def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run directory; `lmlab run --out"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_moved_run_gives_the_same_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    shutil.copytree(run, tmp_path / "elsewhere")
    assert write_report(tmp_path / "elsewhere").read_bytes() == first


def test_a_comparison_of_losses_answers_first(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", stages=STUDY, hostile=True))
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    ET.fromstring(text)
    reader = parsed(page)
    (words,) = [w for w in reader.words if w.startswith("In bits per byte of test text")]
    assert "3 seeds" in words
    said = text[text.index('class="verdict"') : text.index("</header>")]
    assert "better than cross-entropy: emo2 <span>(−0.020)</span>" in said
    assert "no difference seen: emo(balance=none, emo=0.3)" in said
    figures = [a["id"] for tag, a in reader.tags if tag == "figure"]
    assert figures[:2] == ["figure-losses", "figure-summary"]
    assert {"figure-losses-pull", "figure-losses-curves", "figure-losses-rates", "figure-cost-spread"} <= set(
        figures
    )
    told = {(r["loss"], r["metric"]): r for r in records(page.parent / "figures/losses.csv")}
    assert told["emo", "bits_per_byte"]["seen"] == "True" and float(
        told["emo", "accuracy"]["low"]
    ) == pytest.approx(0.05)
    drawn = (page.parent / "figures/losses-bits-per-byte.svg").read_text(encoding="utf-8")
    assert drawn.count("no difference seen") == 1


def test_a_study_of_length_answers_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", copy=True)
    files = read_run(run)
    assert findings(files) == []
    assert verdict(files).startswith("At 1,024 tokens, 4 times the trained length (one seed),")
    assert "<strong>1 of 3 methods beat a plain window</strong>; the best, rerope(window=64), is" in verdict(
        files
    )
    assert "copies 100" in verdict(files)
    assert "length-table" not in [f.name for f in length_section(files).figures]
    write_report(run)
    rows = {r["method"]: r for r in records(run / "figures/length-table.csv")}
    gap = float(rows["rerope(window=64)"]["over_window"])
    assert gap == pytest.approx(-0.05) and 0 < float(rows["rerope(window=64)"]["two_standard_errors"]) < 0.05
    assert rows["window"]["two_standard_errors"] == "" and rows["none"]["copy"] == "0.1"
    copies = records(run / "figures/copy.csv")
    assert {(r["method"], r["length"]) for r in copies} >= {("window", "512"), ("none", "1024")}


def test_length_over_several_seeds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seeds=3, copy=True)
    assert "(3 seeds)" in verdict(read_run(run))


def test_variants_are_drawn_over_length_together(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", variants=("base", "vq"), seeds=2)
    figures = [f.name for f in length_section(read_run(run)).figures]
    assert figures[:2] == ["loss-by-variant", "loss-by-context-1"]
    assert len(records_of(run, "loss-by-variant")) == 2 * 2 * 3


def records_of(run: Path, name: str) -> list[dict[str, str]]:
    write_report(run)
    return records(run / f"figures/{name}.csv")


def test_what_is_inside_the_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", variants=("base", "vq"))
    heads = records_of(run, "heads-1")
    assert len(heads) == 12 and heads[0] == {
        "variant": "base",
        "layer": "0",
        "head": "0",
        "alpha": "0.5",
        "measure": "0.4",
        "entropy": "0.9",
    }
    assert [float(r["entropy"]) for r in records(run / "figures/entropy.csv")][:3] == pytest.approx(
        [0.9, 0.7, 0.5]
    )
    codes = records(run / "figures/codes.csv")
    assert len(codes) == 6 and codes[0]["alive"] == "0.97" and codes[0]["local_loss"] == "4.44"
    assert "0.030 nats a token" in (run / "report.html").read_text(encoding="utf-8")
    gains = records(run / "figures/gain-1-2-exponent.csv")
    assert [(r["gain"], r["sweeps"]) for r in gains] == [
        ("0.5", "3"),
        ("1.0", "4"),
        ("2.0", "5"),
        ("4.0", ""),
    ]
    assert [float(r["diagonal"]) for r in records(run / "figures/gradient-1-2.csv")] == [0.1, 0.2, 0.4, 0.8]
    speed = records(run / "figures/speed-1-2.csv")
    assert len(speed) == 9 and {r["method"] for r in speed} == {"this cell", "torch.nn.GRU", "newton"}
    state = {(r["variant"], r["length"]): int(r["bytes"]) for r in records(run / "figures/state.csv")}
    assert state["base", "256"] == state["base", "4096"] and state["vq", "4096"] == 16 * 9000


def test_the_theory_of_the_scale_is_drawn_where_it_was_asked_for(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", scale="gradient")
    rows = records_of(run, "scale-theory-64")
    limit = float(rows[0]["limit"])
    exact = [float(r["exact"]) for r in rows]
    assert exact == sorted(exact) and exact[-1] < limit  # no summit
    annealed = [float(r["annealed"]) for r in rows]
    assert 0 < annealed.index(max(annealed)) < len(rows) - 1
    for path in run.glob("stages/train-*/stage.json"):
        told = json.loads(path.read_text())
        path.write_text(json.dumps(told | {"settings": {}}))
    write_report(run)
    assert not list(run.glob("figures/scale-theory*"))


def test_retries_are_summed_by_name_and_absent_without_any(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (row,) = records_of(run, "retries")
    assert row == {
        "name": "atomic_write",
        "retries": "4.0",
        "recovered": "2.0",
        "gave_up": "0.0",
        "seconds_slept": "1.5",
    }
    (run / "log.jsonl").write_text('{"event": "retries", "name": "quiet", "retries": 0, "slept": 0.0}\n')
    write_report(run)
    assert not (run / "figures/retries.csv").exists()


def test_what_all_variants_share_is_not_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", variants=("base", "vq"))
    listed = json.loads((run / "stages.json").read_text())
    kept = [e for e in listed if e["stage"] not in ("corpus", "tokenize")]
    shared = [{**next(e for e in listed if e["stage"] == s), "variant": None} for s in ("corpus", "tokenize")]
    (run / "stages.json").write_text(json.dumps([*shared, *kept]))
    text = write_report(run).read_text(encoding="utf-8")
    assert "not finished" not in text
    assert {r["stage"] for r in records(run / "figures/stage-times.csv")} >= {"corpus", "train"}


def test_sweeps_of_a_recurrent_cell_are_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    rows = records_of(run, "sweeps-1-2-error")
    assert {r["method"] for r in rows} == {"jacobi", "newton"} and len(rows) == 12
    assert "base, layer 2: exponent −0.48, contractive" in (run / "report.html").read_text(encoding="utf-8")
    assert (run / "figures/sweeps-1-2-exact-prefix.svg").exists()
