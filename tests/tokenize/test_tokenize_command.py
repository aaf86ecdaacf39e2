"""`lmlab tokenize train | encode | decode | inspect`, as somebody types it."""

from __future__ import annotations

import io
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from lmlab.lab.cli import main
from lmlab.tokenize import Tokenizer
from lmlab.tokenize.inspect import lattice_svg, printable

LINES = [
    "the cat sat on the mat",
    "春眠不覺曉，處處聞啼鳥。",
    "def f(x): return x",
    "床前明月光，疑是地上霜。",
]


def call(*words: str | Path) -> tuple[int, str, str]:
    """The exit code, what was printed, and what was said on stderr."""
    out, error = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        code = main([str(word) for word in words])
    out.flush()
    return code, out.buffer.getvalue().decode("utf-8", "replace"), error.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenize")
    (folder / "a.txt").write_text("\n".join(LINES * 30) + "\n", encoding="utf-8")
    code, out, error = call(
        "tokenize", "train", folder / "a.txt", "--out", folder / "tok.json", "--vocab-size", "300",
        "--special-token", "<eos>", "--special-token", "<pad>", "--workers", "1",
    )  # fmt: skip
    assert (code, error) == (0, "")
    assert f"{folder / 'tok.json'}: 300 entries, " in out
    return folder


def test_trains_what_python_trains(home: Path) -> None:
    tok = Tokenizer.load(home / "tok.json")
    twin = Tokenizer.train(home / "a.txt", 300, special_tokens=["<eos>", "<pad>"])
    assert tok == twin
    assert list(tok.special_tokens) == ["<eos>", "<pad>"]


@pytest.mark.parametrize("options", [[], ["--alpha", "0.3", "--seed", "5"]])
def test_lines_to_ids_and_back(home: Path, options: list[str]) -> None:
    tok = Tokenizer.load(home / "tok.json")
    (home / "lines").write_bytes("\n".join([*LINES, "", "last, and no end"]).encode() + b"\xff\xe4")
    code, ids, _ = call("tokenize", "encode", home / "tok.json", home / "lines", *options)
    assert code == 0
    drawn = {"alpha": 0.3, "seed": 5} if options else {}
    rows = [[int(word) for word in line.split()] for line in ids.split("\n")[:-1]]
    assert rows[:4] == tok.encode_batch(LINES, **drawn).tolist()  # type: ignore[arg-type]
    (home / "ids").write_text(ids)
    ran = subprocess.run(
        [sys.executable, "-m", "lmlab", "tokenize", "decode", home / "tok.json"],
        input=ids.encode(),
        capture_output=True,
        check=True,
    )
    assert ran.stdout == (home / "lines").read_bytes() + b"\n"


def test_special_tokens_are_shown_if_asked_for(home: Path) -> None:
    (home / "special").write_text("299 97 298\n")
    assert call("tokenize", "decode", home / "tok.json", home / "special")[1] == "a\n"
    shown = call("tokenize", "decode", home / "tok.json", home / "special", "--special-tokens")[1]
    assert shown == "<pad>a<eos>\n"


def test_inspect_lists_segmentations_and_draws(home: Path) -> None:
    code, out, _ = call(
        "tokenize", "inspect", home / "tok.json", "the cat", "明月 <b>",
        "--alpha", "0.5", "--against", home / "tok.json", "--out", home / "x.svg", "--n", "2",
    )  # fmt: skip
    assert code == 0
    tok = Tokenizer.load(home / "tok.json")
    head, first, second, other = out.splitlines()[:4]
    assert head.startswith("7 bytes, expected tokens ")
    best = "|".join(printable(tok.pieces[i]) for i in tok.encode("the cat"))
    assert best in first and best in other and best not in second
    picture = ET.parse(home / "x.svg")
    assert picture.getroot().tag.endswith("svg")


def test_the_picture_escapes_cuts_and_says_so() -> None:
    tok = Tokenizer([b"<b>", b"ab", b"&amp;"], [-1.0, -1.0, -1.0])
    drawn = lattice_svg(tok, "<b>&amp;\x00\u202e", alpha=0.3)
    ET.fromstring(drawn)
    assert "<b>" not in drawn
    long = lattice_svg(tok, "é" + "中" * 100)
    assert "the first 200 of 302 bytes" in long
    odd = lattice_svg(tok, b"\xff" + "中".encode() * 100)
    assert "the first 199 of 301 bytes" in odd
    ET.fromstring(lattice_svg(tok, b"\xff\xe4\xb8ab", against=tok))
    ET.fromstring(lattice_svg(tok, ""))


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["train", "--out", "x.json"], 1, "give a source: lmlab tokenize train FILE_OR_DIRECTORY"),
        (["train", "a.txt"], 2, "--out"),
        (["train", "nowhere", "--out", "x.json"], 1, "source 'nowhere' is no file or directory"),
        (["train", "a.txt", "--out", "x.json", "--vocab-size", "20"], 1, "vocab_size must be at least 257"),
        (
            ["train", "a.txt", "--out", "x.json", "--memory-limit", "2"],
            1,
            "memory_limit must be at least 64 MiB",
        ),
        (["encode", "nowhere.json"], 1, "nowhere.json: No such file or directory"),
        (["encode", "a.txt"], 1, "a.txt is not a lmlab.tokenize file: not JSON in UTF-8"),
        (["encode", "tok.json", "a.txt", "--seed", "1"], 1, "seed=1 without alpha would be ignored"),
        (["encode", "tok.json", "a.txt", "--alpha", "-1"], 1, "alpha must be finite and >= 0, not -1.0"),
        (
            ["decode", "tok.json", "a.txt"],
            1,
            "lines to decode must be ids with blanks between, not b'the cat",
        ),
        (["decode", "tok.json", "high"], 1, "ids holds 300, but ids run from 0 to 299"),
        (["inspect", "tok.json"], 1, "give a text: lmlab tokenize inspect TOK TEXT"),
    ],
)
@pytest.mark.bad_input
def test_a_mistake_is_one_line(
    home: Path, words: list[str], code: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (home / "high").write_text("1 300\n")
    got, out, error = call("tokenize", *words)
    assert (got, out) == (code, "")
    assert text in error and error.count("\n") == 1
    assert not (home / "x.json").exists()
