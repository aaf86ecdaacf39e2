"""What is refused, and what the error says: the table of the specification, line by line."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmlab.tokenize import Tokenizer, train

pytestmark = pytest.mark.bad_input
TOK = Tokenizer([b"ab", b"abc", "中".encode()], [-1.0, -2.0, -3.0], special_tokens=["<eos>"])
V = TOK.vocab_size
EOS = TOK.special_tokens["<eos>"]

CALLS: list[tuple[type[Exception], str, Callable[[Any], object]]] = [
    (ValueError, r"text has a lone surrogate, '\\ud800', at character 1: .* pass bytes", lambda t: t.encode("a\ud800")),
    (ValueError, r"texts\[1\] has a lone surrogate, .* at character 0", lambda t: t.encode_batch(["a", "\udc00"])),
    (ValueError, "text has a lone surrogate", lambda t: t.log_partition("\ud800")),
    (ValueError, "text has a lone surrogate", lambda t: t.offsets("\ud800", [])),
    (ValueError, "text has a lone surrogate", lambda t: t.encode("\ud800", alpha=0.5)),
    (TypeError, r"text must be str or bytes, not int \(3\)", lambda t: t.encode(3)),
    (TypeError, r"text must be str or bytes, not NoneType", lambda t: t.encode(None)),
    (TypeError, r"text must be str or bytes, not list", lambda t: t.nbest(["ab"], 1)),
    (TypeError, r"text must be str or bytes, not bytearray", lambda t: t.encode(bytearray(b"ab"))),
    (TypeError, r"texts must be a sequence of texts, not one str: write encode_batch\(\[text\]\)",
     lambda t: t.encode_batch("ab")),
    (TypeError, r"texts\[1\] must be str or bytes, not int", lambda t: t.encode_batch(["ab", 3])),
    (TypeError, r"texts must be a sequence of str or bytes, not int", lambda t: t.encode_batch(3)),
    (ValueError, r"alpha must be finite and >= 0, not -0.5", lambda t: t.encode("ab", alpha=-0.5)),
    (ValueError, r"alpha must be finite and >= 0, not nan", lambda t: t.entropy("ab", alpha=math.nan)),
    (ValueError, r"alpha must be finite and >= 0, not inf \(for the best segmentation leave it out\)",
     lambda t: t.marginals("ab", alpha=math.inf)),
    (TypeError, r"alpha must be a number, not str", lambda t: t.lattice("ab", alpha="1")),
    (TypeError, r"alpha must be a number, not bool", lambda t: t.logprob([0], alpha=True)),
    (ValueError, r"seed must be in \[0, 18446744073709551615\], not -1", lambda t: t.encode("ab", alpha=1, seed=-1)),
    (ValueError, r"seed must be in .* not 18446744073709551616", lambda t: t.encode("ab", alpha=1, seed=2**64)),
    (TypeError, r"seed must be an int, not float", lambda t: t.encode("ab", alpha=1, seed=1.0)),
    (ValueError, r"stream must be in", lambda t: t.encode("ab", alpha=1, seed=1, stream=-1)),
    (ValueError, r"method must be 'exact' or 'viterbi-sampling', not 'best'",
     lambda t: t.encode("ab", alpha=1, method="best")),
    (ValueError, r"seed=3 without alpha would be ignored", lambda t: t.encode("ab", seed=3)),
    (ValueError, r"method='viterbi-sampling' without alpha",
     lambda t: t.encode_batch(["ab"], method="viterbi-sampling")),
    (ValueError, r"n must be in \[1, .* not 0", lambda t: t.nbest("ab", 0)),
    (ValueError, r"n must be in \[1, .* not -2", lambda t: t.sample_without_replacement("ab", -2)),
    (ValueError, r"threads must be in \[1, 4096\], not 0", lambda t: t.encode_batch(["ab"], threads=0)),
    (ValueError, f"ids holds -1, but ids run from 0 to {V - 1}", lambda t: t.decode([0, -1])),
    (ValueError, f"ids holds {V}, but ids run from 0 to {V - 1}", lambda t: t.logprob([0, V, V + 1])),
    (ValueError, f"ids holds {2**40}, but", lambda t: t.offsets("ab", [2**40])),
    (ValueError, f"ids holds {V}, but", lambda t: t.decode(np.array([V], dtype=np.uint32))),
    (ValueError, f"ids holds {V}, but", lambda t: t.decode_batch([[0], [V]])),
    (TypeError, r"ids must be a sequence of ints, not list \(\['a'\]\)", lambda t: t.decode(["a"])),
    (TypeError, r"ids must be a sequence of ints, not list", lambda t: t.decode([0.5])),
    (TypeError, r"ids must be a sequence of ints, not int", lambda t: t.decode(5)),
    (ValueError, r"ids holds the special token '<eos>', which is in no segmentation", lambda t: t.logprob([0, EOS])),
    (ValueError, r"ids don't spell text: they differ from byte 1, where ids have b'b' and text has b'c'",
     lambda t: t.offsets("ac", [0])),
    (ValueError, r"they differ from byte 2, where ids have b'' and text has b'c'", lambda t: t.offsets("abc", [0])),
    (ValueError, r"unit must be 'char' or 'byte', not 'word'", lambda t: t.offsets("ab", [0], unit="word")),
    (ValueError, r"text is not UTF-8 at byte 0, .* use unit='byte'", lambda t: t.offsets(b"\xff", t.encode(b"\xff"))),
    (AttributeError, r"a Tokenizer is immutable: normalize can't be set", lambda t: setattr(t, "normalize", None)),
    (LookupError, r"unknown error handler name 'no'", lambda t: t.decode(t.encode(b"\xff"), errors="no")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "message", "call"), CALLS)
def test_a_call_with_bad_input(kind: type[Exception], message: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(kind, match=message):
        call(TOK)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([b"a", b"a"], [0, 0]), ValueError, r"pieces\[1\] = b'a' occurs twice"),
        (([b"a", b""], [0, 0]), ValueError, r"pieces\[1\] must have 1 to 255 bytes, not 0"),
        (([b"a" * 256], [0]), ValueError, r"pieces\[0\] must have 1 to 255 bytes, not 256"),
        ((["a"], [0]), TypeError, r"pieces\[0\] must be bytes, not str"),
        (("ab", [0, 0]), TypeError, "pieces must be a sequence of bytes, not one text"),
        (([b"a"], [math.nan]), ValueError, r"scores\[0\] = nan of the piece b'a': scores must be finite"),
        (([b"a"], [-math.inf]), ValueError, r"scores\[0\] = -inf"),
        (([b"a"], [1e309]), ValueError, r"scores\[0\] = inf"),
        (([b"a", b"b"], [0]), ValueError, "pieces and scores must be of one length, not 2 and 1"),
    ],
)
def test_a_bad_vocabulary(arguments: tuple[Any, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Tokenizer(*arguments)


def test_bad_special_tokens_and_normalisers() -> None:
    with pytest.raises(ValueError, match=r"special_tokens\[1\] = '<a>' occurs twice"):
        Tokenizer([], [], special_tokens=["<a>", "<a>"])
    with pytest.raises(
        TypeError, match=r"special_tokens must be a sequence of str, not one text: write \['<a>'\]"
    ):
        Tokenizer([], [], special_tokens="<a>")
    with pytest.raises(TypeError, match=r"special_tokens\[0\] must be a non-empty str, not ''"):
        Tokenizer([], [], special_tokens=[""])
    with pytest.raises(ValueError, match="normalize must be 'nfc' or None, not 'nfkc'"):
        Tokenizer([], [], normalize="nfkc")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"vocab_size": 257, "special_tokens": ["<eos>"]}, ValueError, "vocab_size must be at least 258"),
        ({"vocab_size": "8k"}, TypeError, "vocab_size must be an int, not str"),
        ({"max_piece_bytes": 1}, ValueError, r"max_piece_bytes must be in \[2, 255\], not 1"),
        ({"min_count": 0}, ValueError, "min_count must be at least 1, not 0"),
        ({"pruning": "best"}, ValueError, "pruning must be 'compression' or 'likelihood', not 'best'"),
        ({"boundaries": "\n"}, TypeError, r"boundaries must be bytes, for example b'\\n', not"),
        ({"normalize": "nfd"}, ValueError, "normalize must be 'nfc' or None"),
        ({"workers": 0}, ValueError, r"workers must be in \[1, 4096\], not 0"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"memory_limit": "lots"}, ValueError, r"memory_limit must be at least 64 MiB, .* not 'lots'"),
        ({"memory_limit": 10**6}, ValueError, "memory_limit must be at least 64 MiB"),
        ({"memory_limit": "63MiB"}, ValueError, "memory_limit must be at least 64 MiB"),
        ({"source": b"abc"}, TypeError, r"source must be a path, .* one text at hand is \[text\]"),
        ({"source": 5}, TypeError, "source must be a path, .* not int"),
        ({"source": "nowhere.txt"}, FileNotFoundError, r"source 'nowhere.txt' is no file or directory"),
        ({"source": ["ab", 3]}, TypeError, r"source\[1\] must be str or bytes, not int"),
        ({"source": ["ab", "\ud800"]}, ValueError, r"source\[1\] has a lone surrogate"),
        ({"source": []}, ValueError, "source holds no text"),
        ({"source": ["", ""]}, ValueError, "source holds no text"),
    ],
)
def test_bad_arguments_of_training(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"source": ["abc " * 20], "vocab_size": 300} | changes
    with pytest.raises(kind, match=message):
        Tokenizer.train(**arguments)


@pytest.mark.parametrize(
    ("limit", "size"),
    [("64MiB", 64 << 20), ("2GB", 2 * 10**9), ("1.5 gib", 3 << 29), ("100000000", 10**8), (1 << 30, 1 << 30)],
)
def test_limits_that_can_be_read(limit: int | str, size: int) -> None:
    assert train.read_memory_limit(limit) == size


def test_what_can_not_be_read_is_skipped_counted_and_told(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    good = "the cat sat on the mat " * 5
    rows = [
        json.dumps({"text": good}),
        "{broken",
        json.dumps({"body": good}),
        "",
        json.dumps({"text": 3}),
        "[1]",
    ]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, json.dumps({"text": "\ud800"})]))
    (tmp_path / "b" / "c.md").write_text(good)
    (tmp_path / "b" / "ignored.py").write_text("x" * 1000)
    (tmp_path / "unreadable.txt").write_text(good)
    (tmp_path / "unreadable.txt").chmod(0)
    hidden = 0 if os.access(tmp_path / "unreadable.txt", os.R_OK) else 1  # root reads everything
    with pytest.warns(UserWarning) as told:
        tok = Tokenizer.train(tmp_path, 300)
    assert tok.training["skipped"] == 5 + hidden
    message = next(str(w.message) for w in told if "skipped" in str(w.message))
    assert f"{5 + hidden} lines or files of the source were skipped, the first: " in message
    assert f"{tmp_path / 'a.jsonl'}:2: JSONDecodeError" in message
    texts = 3 - hidden
    assert tok.training["texts"] == texts
    assert tok.training["bytes_read"] == texts * len(good)


def test_a_line_of_json_that_would_break_the_limit_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmlab.tokenize.source import Source

    rows = ["short one", "x" * 3000, "another", "y" * 900]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    source = Source(tmp_path / "a.jsonl", field="text", normalize=None, longest_line=1000)
    assert [text for texts, _ in source.blocks() for text in texts] == ["short one", "another", "y" * 900]
    assert (source.skipped, source.bytes_read) == (1, (tmp_path / "a.jsonl").stat().st_size)
    assert "a.jsonl:2: ValueError: a line of more than 1000 bytes" in source.first_skipped


def test_a_file_of_lines_comes_whole_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmlab.tokenize import source

    monkeypatch.setattr(source, "BLOCK", 7)
    monkeypatch.setattr(source, "LONGEST_PART", 20)
    text = "春眠不覺曉，處處聞啼鳥。" * 5 + "\nshort\n\n" + "x" * 50 + "\r\nlast without an end é"
    (tmp_path / "a.txt").write_bytes(text.encode())
    found = [
        part
        for texts, _ in source.Source(tmp_path / "a.txt", field="", normalize=None).blocks()
        for part in texts
    ]
    assert b"".join(found).decode() == text  # type: ignore[arg-type]
    for part in found:
        assert isinstance(part, bytes) and part.decode()


def test_foreign_and_damaged_files(tmp_path: Path) -> None:
    TOK.save(tmp_path / "good.json")
    good = json.loads((tmp_path / "good.json").read_text())
    assert Tokenizer.load(tmp_path / "good.json") == TOK

    def refused(content: object, message: str) -> None:
        (tmp_path / "x.json").write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ValueError, match=message):
            Tokenizer.load(tmp_path / "x.json")

    refused("", "is not a lmlab.tokenize file: not JSON")
    refused((tmp_path / "good.json").read_text()[:-40], "is not a lmlab.tokenize file: not JSON")
    refused("[1]", "is not a lmlab.tokenize file: its format is 'list'")
    refused({"model": 1}, "is not a lmlab.tokenize file: its format is None")
    refused(good | {"format": "other"}, "its format is 'other'")
    refused(
        good | {"version": 2}, r"has version 2 of lmlab.tokenize, this program reads version 1: update lmlab"
    )
    refused(good | {"pieces": [["a", -1.0], ["a", -2.0]], "special_tokens": {}}, "damaged .* occurs twice")
    refused(good | {"pieces": [["a", math.nan]], "special_tokens": {}}, "damaged .* must be finite")
    refused(
        good | {"special_tokens": {"<eos>": 0}}, "damaged .* '<eos>' has the id 0, which is not its entry"
    )
    refused(good | {"pieces": [["a"]]}, "damaged")
    refused(good | {"pieces": 3}, "damaged")
    refused({k: v for k, v in good.items() if k != "normalize"}, "damaged")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not JSON in UTF-8"):
        Tokenizer.load(tmp_path / "x.json")


def test_an_empty_source_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="source holds no text"):
        Tokenizer.train(tmp_path / "a.txt", 300, state=tmp_path / "state")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


def test_the_warnings_of_a_small_corpus_are_the_only_ones() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Tokenizer.train(["abab"], 400, min_count=1)
    assert len(told) == 1 and "too few pieces" in str(told[0].message)
