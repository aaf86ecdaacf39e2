"""Corpora: every kind of file, every kind of bad document, and the split."""

import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.lab import CorpusError
from lmlab.lab.corpus import documents, make_corpus, read_documents
from lmlab.lab.options import CorpusOptions
from lmlab.lab.sources import Skipped, Source, embedded_sources, find_sources
from lmlab.lab.steps.recall import passages_source, recall_source


def read(folder: Path, path: str, **options: Any) -> tuple[list[str], Counter[str]]:
    """All documents of a path, and what was left out by reason."""
    chosen = CorpusOptions(path=path, **options)
    sources, skipped = find_sources(chosen, folder, folder)
    found = [text for source in sources for text in documents(source, chosen, skipped)]
    return found, skipped.counts


def make(folder: Path, out: Path, seed: int = 0, **options: Any) -> dict[str, Any]:
    out.mkdir()
    chosen = CorpusOptions(**options)
    sources, skipped = find_sources(chosen, folder, folder)
    return make_corpus(sources, skipped, chosen, seed, out)


# --- formats ------------------------------------------------------------------------------------------------


def test_a_text_file_falls_into_documents_at_its_separator(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\none more\n\n\ntwo\n\n\n\nthree\n\n\n", encoding="utf-8")
    assert read(tmp_path, "a.txt") == (["one\n\none more", "two", "three"], Counter())
    assert read(tmp_path, "a.txt", document_separator="")[0][0].startswith("one\n\none more\n\n\ntwo")
    assert read(tmp_path, "a.txt", format="lines")[1] == Counter({"empty": 8})


def test_jsonl_lines_and_parquet(tmp_path: Path) -> None:
    rows = [{"text": "eins"}, {"text": 3}, {"other": "x"}, ["text"], {"text": "zwei", "more": 1}]
    lines = [json.dumps(row) for row in rows] + ["{broken", "", '{"text": "\\ud800"}', '{"text": "a\\u0000"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found, skipped = read(tmp_path, "a.jsonl")
    assert found == ["eins", "zwei"]
    assert skipped == {"no text under 'text'": 3, "broken JSON": 1, "invalid UTF-8": 1, "NUL": 1}
    assert read(tmp_path, "a.jsonl", field="other")[0] == ["x"]

    (tmp_path / "b.txt").write_text("eins\nzwei\n", encoding="utf-8")
    assert read(tmp_path, "b.txt", format="lines")[0] == ["eins", "zwei"]

    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"text": ["eins", None, "zwei"]}), tmp_path / "c.parquet")
    assert read(tmp_path, "c.parquet") == (["eins", "zwei"], Counter({"no text under 'text'": 1}))
    assert read(tmp_path, "c.parquet", field="body") == ([], Counter({"no column 'body'": 1}))
    (tmp_path / "d.parquet").write_bytes(b"PAR1 nothing PAR1")
    assert read(tmp_path, "d.parquet") == ([], Counter({"broken parquet": 1}))


def test_a_directory_and_a_glob_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.txt", "3.txt", ".hidden.txt", ".git/x.txt", "b/picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert read(tmp_path, ".") == (["3.txt", "a/1.txt", "b/2.txt"], Counter({"unknown kind of file": 1}))
    assert read(tmp_path, "*/*.txt")[0] == ["a/1.txt", "b/2.txt"]
    assert read(tmp_path, str(tmp_path / "**" / "*.txt"))[0] == ["3.txt", "a/1.txt", "b/2.txt"]
    assert read(tmp_path, "b/picture.png")[0] == ["b/picture.png"]  # asked for by name


@given(st.lists(st.text(st.sampled_from("ab\n"), max_size=12), max_size=6), st.integers(1, 6))
def test_pieces_do_not_depend_on_the_blocks_in_which_a_file_is_read(texts: list[str], limit: int) -> None:
    import io

    from lmlab.lab import corpus

    data = "|||".join(texts).encode()
    wanted = [p if len(p) <= limit else None for p in data.split(b"|||")]
    wanted = wanted[:-1] if not data or data.endswith(b"|||") else wanted
    block = corpus._BLOCK
    for size in (1, 2, 5, 64):
        corpus._BLOCK = size
        try:
            assert list(corpus._split(io.BytesIO(data), b"|||", limit)) == wanted
        finally:
            corpus._BLOCK = block


# --- hostile documents and files ----------------------------------------------------------------------------


def test_bad_documents_are_counted_by_reason(tmp_path: Path) -> None:
    parts = [b"good", b"\xff\xfe", b"", b" \n ", b"a\0b", b"x" * 50, b"gut", b"\xed\xa0\x80"]
    (tmp_path / "a.txt").write_bytes(b"\n\n\n".join(parts))
    found, skipped = read(tmp_path, "a.txt", max_document_bytes=49)
    assert found == ["good", "gut"]
    assert skipped == {"invalid UTF-8": 2, "empty": 2, "NUL": 1, "too long": 1}
    replaced, skipped = read(tmp_path, "a.txt", errors="replace")
    assert replaced == ["good", "��", "a�b", "x" * 50, "gut", "���"]
    assert skipped == {"empty": 2}


def test_what_is_no_regular_file_is_named_and_never_read(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good", encoding="utf-8")
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "null.txt").symlink_to("/dev/null")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "around").symlink_to(".")
    (tmp_path / "link.txt").symlink_to("good.txt")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket may be short only
        try:
            server.bind("socket.txt")
        finally:
            os.chdir(here)
        found, skipped = read(tmp_path, ".")
    assert found == ["good", "good"]
    assert skipped == {
        "FIFO": 1,
        "loop of links": 1,
        "broken link": 1,
        "device": 2,
        "link to a directory": 1,
        "socket": 1,
    }


@pytest.mark.parametrize("name", ["fifo", "loop", "/dev/zero"])
def test_one_path_that_is_no_file_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CorpusError, match=r"no text in .*(FIFO|loop of links|device)"):
        read(tmp_path, name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "none.txt"}, "no such file or directory"),
        ({"path": "a\0b"}, "NUL"),
        ({"path": "*.none"}, "no text in"),
        ({"name": "brown"}, "lmlab data fetch brown"),
    ],
)
def test_a_corpus_that_is_not_there(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=words):
        find_sources(CorpusOptions(**options), tmp_path, tmp_path / "fetched")


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\n\n\n \n")
    with pytest.raises(CorpusError, match=r"no document can be used\. Left out: 1 invalid UTF-8 .*1 empty"):
        make(tmp_path, tmp_path / "out", path="a.txt")
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(CorpusError, match="no document can be used"):
        make(tmp_path, tmp_path / "out2", path="b.txt")


# --- the split ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [0.01, 0.05, 0.3])
def test_the_split_is_of_about_the_share_and_loses_nothing(held_out: float, tmp_path: Path) -> None:
    texts = [f"document {n} " * (1 + n % 7) for n in range(300)] + ["the same"] * 5
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    told = make(tmp_path, tmp_path / "out", path="a.jsonl", held_out=held_out)
    train = list(read_documents(tmp_path / "out" / "train.jsonl"))
    held = list(read_documents(tmp_path / "out" / "held_out.jsonl"))
    assert Counter(train) + Counter(held) == Counter(texts)
    assert not set(train) & set(held)  # equal documents are on one side
    assert told["documents"] == {"train": len(train), "held_out": len(held)}
    assert told["train_bytes"] == sum(len(t.encode()) for t in train)
    assert told["held_out_bytes"] == sum(len(t.encode()) for t in held)
    share = told["held_out_bytes"] / (told["train_bytes"] + told["held_out_bytes"])
    assert held_out <= share < held_out + 0.02
    assert json.loads((tmp_path / "out" / "corpus.json").read_text()) == told
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "corpus.json",
        "held_out.jsonl",
        "train.jsonl",
    ]


def test_the_split_goes_by_the_text_and_the_seed_alone(tmp_path: Path) -> None:
    texts = [f"document {n}" for n in range(100)]
    for name, some in (("a", texts), ("b", [*texts[::-1], "one more"])):
        (tmp_path / f"{name}.txt").write_text("\n\n\n".join(some))
    held = {}
    for name, path, seed in (("1", "a.txt", 0), ("2", "b.txt", 0), ("3", "a.txt", 1)):
        make(tmp_path, tmp_path / name, seed, path=path, held_out=0.2)
        held[name] = list(read_documents(tmp_path / name / "held_out.jsonl"))
    assert len(set(held["1"]) ^ set(held["2"])) <= 2
    assert len(set(held["1"]) & set(held["3"])) < 10
    assert held["1"] != sorted(held["1"])  # in the order of hashes: the first ones are a fair sample


@pytest.mark.parametrize("text", ["line one\nline two\nline three\n" * 30, "床前明月光" * 40, "ab"])
def test_one_document_gives_its_tail(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    make(tmp_path, tmp_path / "out", path="a.txt", held_out=0.1)
    (train,) = read_documents(tmp_path / "out" / "train.jsonl")
    (held,) = read_documents(tmp_path / "out" / "held_out.jsonl")
    assert train + held == text.strip("\n")
    assert train and held


def test_one_document_of_one_character_can_not_be_divided(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("床", encoding="utf-8")
    with pytest.raises(CorpusError, match="can't be divided"):
        make(tmp_path, tmp_path / "out", path="a.txt")


def test_max_bytes_ends_the_reading(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n\n".join(["0123456789"] * 3 + ["x"] * 5))
    told = make(tmp_path, tmp_path / "out", path="a.txt", max_bytes=25)
    assert told["skipped"] == {"over max_bytes": 1}
    with pytest.raises(CorpusError, match=r"less than the first document \(10 bytes\)"):
        make(tmp_path, tmp_path / "out2", path="a.txt", max_bytes=5)


# --- what the package brings --------------------------------------------------------------------------------


def test_the_embedded_text_is_two_languages_of_about_a_megabyte(tmp_path: Path) -> None:
    sources = {source.name: source for source in embedded_sources()}
    assert sorted(sources) == ["kjv.txt", "tang.txt"]
    for source in sources.values():
        skipped = Skipped()
        texts = list(documents(source, CorpusOptions(), skipped))
        assert not skipped.counts
        assert 900_000 < sum(len(text.encode()) for text in texts) < 1_100_000
        assert len(texts) > 250


def test_the_recall_corpus_is_made_for_the_trained_length() -> None:
    source = recall_source(64, 0, 20_000)
    texts = list(documents(source, CorpusOptions(), Skipped()))
    assert {len(text) for text in texts} == {3 * 64} and len(texts) == 103
    assert recall_source(64, 0, 20_000).sha256 == source.sha256 != recall_source(64, 1, 20_000).sha256


def test_passages_come_again_within_half_of_the_trained_length() -> None:
    source = passages_source(64, 0, 20_000)
    texts = list(documents(source, CorpusOptions(), Skipped()))
    assert {len(text) for text in texts} == {3 * 64} and len(texts) == 103
    periods = [next(p for p in range(1, 193) if text[p:] == text[:-p]) for text in texts]
    assert min(periods) < 20 and max(periods) > 28 and max(periods) <= 32
    assert passages_source(64, 0, 20_000).sha256 == source.sha256 != passages_source(64, 1, 20_000).sha256


def test_a_source_opens_again_and_again() -> None:
    source: Source = embedded_sources()[0]
    with source.open() as first, source.open() as second:
        assert first.read(100) == second.read(100)
