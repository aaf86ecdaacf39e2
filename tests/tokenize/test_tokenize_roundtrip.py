"""Any bytes come back from their ids, whatever the vocabulary and the way of encoding."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.tokenize import Tokenizer

TOK = Tokenizer(
    [b"ab", b"abc", b"bc", b"\xe4\xb8", "中文".encode(), b"  ", b"    ", b"the ", b"a"],
    [-2.0, -3.0, -2.5, -4.0, -3.5, -1.0, -1.5, -2.0, -3.0],
    special_tokens=["<eos>", "<pad>"],
)
WAYS = [
    {},
    {"alpha": 0.0, "seed": 1},
    {"alpha": 0.7, "seed": 2},
    {"alpha": 1.0, "seed": 3, "method": "viterbi-sampling"},
]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300) | st.text(alphabet="abc 中文\n", max_size=60).map(str.encode))
def test_bytes_come_back(way: dict[str, object], data: bytes) -> None:
    assert TOK.decode_bytes(TOK.encode(data, **way)) == data  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_text_comes_back(text: str) -> None:
    assert TOK.decode(TOK.encode(text)) == text
    assert TOK.encode(text) == TOK.encode(text.encode())


def test_a_hundred_thousand_random_byte_strings_come_back() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 12, 100_000)
    letters = np.frombuffer(b"abc the\xe4\xb8\xad\x80\xff\n", dtype=np.uint8)
    blob = letters[rng.integers(0, len(letters), lengths.sum())]
    blob[: len(blob) // 2] = rng.integers(0, 256, len(blob) // 2)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    texts = [blob[a:b].tobytes() for a, b in itertools.pairwise(ends)]
    for alpha in (None, 0.5):
        encoded = TOK.encode_batch(texts, alpha=alpha, seed=None if alpha is None else 1)
        lengths_of = np.array([len(piece) for piece in TOK.pieces])
        per_text = np.add.reduceat(np.append(lengths_of[encoded.ids], 0), encoded.offsets[:-1])
        per_text[encoded.offsets[:-1] == encoded.offsets[1:]] = 0
        assert (per_text == lengths).all()
        assert TOK.decode_bytes(encoded.ids) == b"".join(texts)


def test_every_plane_of_unicode_comes_back() -> None:
    text = "".join(chr(c) for c in range(0, 0x110000, 37) if not 0xD800 <= c < 0xE000)
    assert TOK.decode(TOK.encode(text)) == text


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_and_streams_never_matter(threads: int) -> None:
    texts = ["abc the 中文 " * (i % 40) for i in range(3000)]
    for alpha, seed in ((None, None), (0.5, 11)):
        whole = TOK.encode_batch(texts, alpha=alpha, seed=seed, threads=1)
        again = TOK.encode_batch(texts, alpha=alpha, seed=seed, threads=threads)
        assert (whole.ids == again.ids).all()
        assert (whole.offsets == again.offsets).all()
        tail = TOK.encode_batch(texts[700:], alpha=alpha, seed=seed, stream=700, threads=threads)
        assert tail.tolist() == whole.tolist()[700:]
        assert TOK.encode(texts[35], alpha=alpha, seed=seed, stream=35) == whole[35].tolist()


def test_saved_loaded_pickled(tmp_path: Path) -> None:
    TOK.save(tmp_path / "tok.json")
    for twin in (Tokenizer.load(tmp_path / "tok.json"), pickle.loads(pickle.dumps(TOK))):
        assert twin == TOK
        assert hash(twin) == hash(TOK)
        assert twin.special_tokens == TOK.special_tokens
        assert (twin.scores == TOK.scores).all()
        assert twin.encode("abc the 中文", alpha=0.3, seed=5) == TOK.encode("abc the 中文", alpha=0.3, seed=5)


def test_ids_are_laid_out_as_promised() -> None:
    assert TOK.pieces[:2] == (b"ab", b"abc")
    assert TOK.special_tokens == {"<eos>": TOK.vocab_size - 2, "<pad>": TOK.vocab_size - 1}
    assert TOK.piece_to_id("中文") == 4
    assert TOK.piece_to_id("<eos>") == TOK.vocab_size - 2
    missing = TOK.pieces[9:-2]
    assert missing == tuple(bytes([b]) for b in range(256) if b != ord("a"))
    assert (TOK.scores[9:-2] == -14.0).all()
    with pytest.raises(KeyError, match="no piece 'xyz'"):
        TOK.piece_to_id("xyz")


def test_special_tokens_are_skipped_or_shown() -> None:
    ids = [*TOK.encode("ab"), TOK.special_tokens["<eos>"]]
    assert TOK.decode(ids) == "ab"
    assert TOK.decode(ids, skip_special_tokens=False) == "ab<eos>"
    assert TOK.special_tokens["<eos>"] not in TOK.encode("<eos>")
