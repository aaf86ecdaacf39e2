"""Long texts, streams of ids, offsets, and a training that is interrupted."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.tokenize import Tokenizer

TOK = Tokenizer(
    [b"ab", b"abc", b"bc", b"\xe4\xb8", "中文".encode(), b"  ", b"the ", "é".encode(), b"aaaa"],
    [-2.0, -3.0, -2.5, -4.0, -3.5, -1.0, -2.0, -3.0, -4.0],
    special_tokens=["<eos>"],
)
EOS = TOK.special_tokens["<eos>"]


@settings(max_examples=80, deadline=None)
@given(
    data=st.text(alphabet="ab 中文é😀\u0301", max_size=40).map(str.encode) | st.binary(max_size=40),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    errors=st.sampled_from(["replace", "ignore", "backslashreplace"]),
)
def test_a_stream_in_any_parts_is_the_whole(data: bytes, cuts: list[int], errors: str) -> None:
    ids = TOK.encode(data)
    decoder = TOK.decoder(errors=errors)
    places = sorted({0, len(ids), *(c for c in cuts if c < len(ids))})
    shown = [decoder.feed(ids[a:b]) for a, b in itertools.pairwise(places)] + [decoder.finish()]
    assert "".join(shown) == TOK.decode(ids, errors=errors)
    assert decoder.feed(TOK.encode("ab")) + decoder.finish() == "ab"


def test_a_stream_never_shows_half_a_character() -> None:
    decoder = TOK.decoder()
    assert [decoder.feed([i]) for i in TOK.encode(b"\xe4\xb8")] == [""]
    assert decoder.feed(TOK.encode(b"\xad")) == "中"
    assert decoder.feed(TOK.encode(b"\xe4\xb8")) + decoder.finish() == "\ufffd"
    assert TOK.decoder(skip_special_tokens=False).feed([EOS, 0]) == "<eos>ab"


@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet="abc 中文é😀", max_size=30), alpha=st.sampled_from([0.0, 1.0]))
def test_offsets(text: str, alpha: float) -> None:
    data = text.encode()
    ids = TOK.encode(text, alpha=alpha, seed=1)
    by_byte = TOK.offsets(text, ids, unit="byte")
    assert [data[a:b] for a, b in by_byte] == [TOK.pieces[i] for i in ids]
    begins = np.cumsum([0, *(len(c.encode()) for c in text)])
    for (a, b), (first, last) in zip(by_byte.tolist(), TOK.offsets(text, ids).tolist(), strict=True):
        touched = [k for k in range(len(text)) if begins[k] < b and begins[k + 1] > a]
        assert (first, last) == (touched[0], touched[-1] + 1)


def test_offsets_of_special_tokens_and_of_normalised_text() -> None:
    ids = [EOS, *TOK.encode("中文"), EOS]
    assert TOK.offsets("中文", ids).tolist() == [[0, 0], [0, 2], [2, 2]]
    assert TOK.offsets("中文", ids, unit="byte").dtype == np.int64
    nfc = Tokenizer(["é".encode()], [-1.0], normalize="nfc")
    assert nfc.offsets("e\u0301a", nfc.encode("e\u0301a")).tolist() == [[0, 1], [1, 2]]
    assert nfc.decode(nfc.encode("e\u0301")) == "é"
    assert nfc.decode_bytes(nfc.encode("e\u0301".encode())) == "e\u0301".encode()


@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 1025, 1 << 20])
@pytest.mark.parametrize("alpha", [None, 0.0, 1.0])
def test_runs_of_one_byte_and_random_bytes_come_back(size: int, alpha: float | None) -> None:
    rng = random.Random(size)
    for data in (b"a" * size, b"\x80" * size, rng.randbytes(size)):
        ids = TOK.encode_batch([data], alpha=alpha, seed=None if alpha is None else 1).ids
        assert TOK.decode_bytes(ids) == data


LINEAR = """
import sys, time
from pathlib import Path
from lmlab.tokenize import Tokenizer
tok = Tokenizer([b"ab", b"abc", b"the ", b"aaaa"], [-2.0, -3.0, -2.0, -4.0])
text = ("the abcabc aaaaaaaaab \\u4e2d" * 500_000).encode()[: int(sys.argv[1])]
for alpha in (None, 0.5):
    def took(parts):
        begun = time.process_time()
        ids = tok.encode_batch(parts, alpha=alpha, seed=None if alpha is None else 1, threads=1).ids
        return time.process_time() - begun, ids
    part = len(text) // 100
    parts = [text[i : i + part] for i in range(0, len(text), part)]
    few = min(took(parts)[0] for _ in range(3))
    line, ids = min((took([text]) for _ in range(3)), key=lambda pair: pair[0])
    assert tok.decode_bytes(ids) == text
    print(line / few)
status = Path("/proc/self/status")  # its peak since exec; getrusage would tell the parent's
lines = status.read_text().splitlines() if status.exists() else []
print(next((int(line.split()[1]) * 1024 / len(text) for line in lines if line.startswith("VmHWM:")), 0.0))
"""


def test_a_line_of_ten_megabytes_takes_what_its_parts_take() -> None:
    """A quadratic trace back would take a hundred times as long; memory is a small multiple of the text."""
    ran = subprocess.run(
        [sys.executable, "-c", LINEAR, str(10_000_000)], capture_output=True, text=True, check=True
    )
    best, drawn, memory = map(float, ran.stdout.split())
    assert best < 10 and drawn < 10
    assert memory < 60


INTERRUPTED = """
import sys, threading, os, signal
import numpy as np
from lmlab.tokenize import Tokenizer, train
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run behind "&" it is ignored
shrink = train._shrink
def late(*arguments):  # the rounds have begun
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    shrink(*arguments)
train._shrink = late
rng = np.random.default_rng(0)
lines = [bytes(line) for line in rng.integers(97, 101, (100_000, 60)).astype(np.uint8)]
try:
    Tokenizer.train(lines, 8000).save(sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", threading.active_count())
"""


def test_an_interrupt_ends_training_and_leaves_nothing(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "tok.json")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode in (0, -signal.SIGINT), ran.stderr
    assert "interrupted" in ran.stdout, ran.stderr
    assert list(tmp_path.iterdir()) == []
