"""Training in bounded memory: a stream larger than the limit, a kill at any moment, awkward corpora."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmlab.tokenize import Tokenizer, partial, train

LIMIT = 64 << 20

# Trains on a stream twice as large as the limit and prints what the process took.
STREAM = """
import sys
import numpy as np
from lmlab.tokenize import Tokenizer

kind, size, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
words = [w.encode() for w in "the of and to in model value return 明月 江山 春風 self data 12".split()]
phrases = [b" ".join(words[i] for i in rng.integers(0, len(words), 9)) for _ in range(5000)]
def stream():
    left = size
    while left > 0:
        if kind == "words":
            text = b" ".join(words[i] for i in rng.integers(0, len(words), 20_000))
            text = text.replace(b"value self", b"value\\nself")
        elif kind == "letters":  # one long line: all suffixes begin alike
            text = rng.integers(97, 99, 1 << 20).astype(np.uint8).tobytes()
        else:  # short lines, nearly all different, of any bytes
            text = rng.integers(0, 256, 1 << 20).astype(np.uint8)
            text[::9] = 10
            text = text.tobytes()
        left -= len(text)
        yield text
tok = Tokenizer.train(stream(), 512, memory_limit=limit, workers=2)
print(tok.training["peak_bytes"], tok.training["bytes_read"], tok.training["bytes_used"], tok.vocab_size)
"""


@pytest.mark.parametrize(("kind", "times"), [("words", 2.0), ("letters", 0.2), ("noise", 0.7)])
def test_a_stream_larger_than_the_limit_stays_below_it(kind: str, times: float) -> None:
    size = int(times * LIMIT)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STREAM, kind, str(size), str(LIMIT)],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, read, used, entries = map(int, ran.stdout.split())
    assert peak <= LIMIT
    assert read >= size
    assert LIMIT / 100 < used < LIMIT / 8 or kind == "words"
    assert entries == 512


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of some kilobytes, so that a small file is counted all over again, and small blocks."""
    monkeypatch.setattr(train, "BYTES_PER_SAMPLED_BYTE", LIMIT // 20_000)
    monkeypatch.setattr(train, "BLOCKS_PER_SAVE", 2)
    monkeypatch.setattr("lmlab.tokenize.source.BLOCK", 10_000)


def write_corpus(path: Path, lines: int) -> None:
    rng = random.Random(3)
    words = ["return", "value", "明月", "春風", "the", "model", "self", "江山", "def ", " x = "]
    path.write_text(
        "\n".join("".join(rng.choices(words, k=8)) for _ in range(lines)), encoding="utf-8", newline="\n"
    )


def without_measurements(path: Path) -> dict[str, Any]:
    told = json.loads(path.read_text(encoding="utf-8"))
    del told["training"]["seconds"], told["training"]["peak_bytes"]
    return told  # type: ignore[no-any-return]


KILLED = """
import os, signal, sys
from lmlab.lab.cli import main
from lmlab.tokenize import partial, source, train
train.BYTES_PER_SAMPLED_BYTE = (64 << 20) // 20_000
train.BLOCKS_PER_SAVE = 2
source.BLOCK = 10_000
left = int(sys.argv[1])
save = partial.Partial.save
def save_and_die(self, learner, place):
    global left
    save(self, learner, place)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
partial.Partial.save = save_and_die
main(sys.argv[2:])
"""


@pytest.mark.usefixtures("small_parts")
def test_killed_at_any_save_it_goes_on_to_the_same_file(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    write_corpus(source, 3000)
    arguments = ["tokenize", "train", str(source), "--vocab-size", "290", "--memory-limit", "64MiB"]
    Tokenizer.train(source, 290, memory_limit=LIMIT).save(tmp_path / "whole.json")
    whole = without_measurements(tmp_path / "whole.json")
    assert whole["training"]["bytes_used"] < whole["training"]["bytes_read"] / 3
    out = tmp_path / "tok.json"
    kills = 0
    # Each process dies two or three saves further on, until one comes through.
    for lifetime in (1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 10**6):
        ran = subprocess.run(
            [
                sys.executable,
                "-c",
                KILLED,
                str(lifetime),
                *arguments,
                "--out",
                str(out),
                "--resume",
                "--workers",
                "2",
            ],
            capture_output=True,
            text=True,
        )
        if ran.returncode == 0:
            break
        assert ran.returncode == -9, ran.stderr
        assert not out.exists()
        kills += 1
    assert kills >= 5
    found = without_measurements(out)
    found["training"]["workers"] = whole["training"]["workers"]
    assert found == whole
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name or ".tmp" in path.name] == []


class Stop(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    save = partial.Partial.save

    def save_and_stop(self: partial.Partial, *args: Any) -> None:
        nonlocal saves
        save(self, *args)
        saves -= 1
        if saves == 0:
            raise Stop

    monkeypatch.setattr(partial.Partial, "save", save_and_stop)


def test_an_iterator_goes_on_without_being_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "a.txt", 500)
    texts = (tmp_path / "a.txt").read_text(encoding="utf-8").split("\n")
    whole = Tokenizer.train(iter(texts), 290)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_after(patched, 3)
        Tokenizer.train(iter(texts), 290, state=tmp_path / "state")
    found = Tokenizer.train(iter(()), 290, state=tmp_path / "state")
    assert found == whole
    assert found.training["bytes_read"] == whole.training["bytes_read"]
    assert found.training["rounds"] == whole.training["rounds"]
    assert not (tmp_path / "state").exists()


@pytest.mark.bad_input
def test_a_state_of_another_training_or_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "a.txt", 300)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_after(patched, 2)
        Tokenizer.train(tmp_path / "a.txt", 290, state=tmp_path / "state")
    with pytest.raises(ValueError, match="another source or other arguments: remove it"):
        Tokenizer.train(tmp_path / "a.txt", 291, state=tmp_path / "state")
    write_corpus(tmp_path / "b.txt", 300)
    with pytest.raises(ValueError, match="another source or other arguments: remove it"):
        Tokenizer.train(tmp_path / "b.txt", 290, state=tmp_path / "state")
    (tmp_path / "state" / "sample.npz").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(ValueError, match=r"state is damaged .*: remove it to begin anew"):
        Tokenizer.train(tmp_path / "a.txt", 290, state=tmp_path / "state")


@pytest.mark.usefixtures("small_parts")
def test_what_is_sampled_is_counted_in_full_where_it_can_be_read_again(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a.txt", 2000)
    texts = (tmp_path / "a.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    from_file = Tokenizer.train(tmp_path / "a.txt", 290, memory_limit=LIMIT)
    from_list = Tokenizer.train(texts, 290, memory_limit=LIMIT, workers=1)
    assert from_file == from_list
    whole = from_file.training
    assert whole["bytes_used"] < whole["bytes_read"] / 3
    assert whole["tokens"] == pytest.approx(len(from_file.encode_batch(texts).ids), rel=0.01)
    once = Tokenizer.train(iter(texts), 290, memory_limit=LIMIT)
    assert once.training["tokens"] < whole["tokens"] / 3


def test_progress_is_shown(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_corpus(tmp_path / "a.txt", 300)
    Tokenizer.train(tmp_path / "a.txt", 290, progress=True)
    assert "round" in capfd.readouterr().out


def test_counts_of_the_sample_follow_the_source() -> None:
    """Every line has the same chance, those that repeat as well."""
    rng = np.random.default_rng(1)
    lines = ["common line\n"] * 20_000 + [f"{i} rare {i * 7}\n" for i in range(20_000)]
    rng.shuffle(lines)
    from lmlab._native import tokenize as native

    learner = native.Learner(b"\n", True, False, 18, 100_000, 5)
    learner.add(tuple(lines), len(lines))
    learner.seed(2, 1000, 1)
    sample = learner.sample()
    counts = np.sort(sample["counts"])
    assert 0.01 < sample["chance"][0] < 0.5
    assert abs(counts[-1] - 20_000 * sample["chance"][0]) < 5 * np.sqrt(20_000 * sample["chance"][0])
    assert abs((len(counts) - 1) - 20_000 * sample["chance"][0]) < 5 * np.sqrt(20_000 * sample["chance"][0])
