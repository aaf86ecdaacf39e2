"""Training: what it promises about sizes, rules and repetition."""

from __future__ import annotations

import random
import warnings

import pytest

from lmlab.tokenize import Tokenizer

WORDS = [
    "return",
    "value",
    "明月",
    "春風",
    "the",
    "model",
    "12",
    "345",
    "self",
    "江山",
    "éa",
    "def ",
    " x = ",
]


def corpus(lines: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        "".join(rng.choice(WORDS) + rng.choice(["", " ", "，"]) for _ in range(12)) + "\n"
        for _ in range(lines)
    ]


@pytest.mark.parametrize("pruning", ["compression", "likelihood"])
def test_same_vocabulary_for_any_workers_and_kind_of_source(pruning: str) -> None:
    texts = corpus(800)
    first = Tokenizer.train(texts, 400, workers=1, pruning=pruning, special_tokens=["<eos>"])  # type: ignore[arg-type]
    for workers in (2, 3):
        twin = Tokenizer.train(texts, 400, workers=workers, pruning=pruning, special_tokens=["<eos>"])  # type: ignore[arg-type]
        assert twin.fingerprint == first.fingerprint
    generator = Tokenizer.train(iter(texts), 400, pruning=pruning, special_tokens=["<eos>"])  # type: ignore[arg-type]
    assert generator.fingerprint == first.fingerprint
    assert first.vocab_size == 400
    assert first.pieces[:256] == tuple(bytes([b]) for b in range(256))
    assert first.special_tokens == {"<eos>": 399}
    assert first.training["texts"] == 800
    assert first.training["bytes_read"] == len("".join(texts).encode())
    # The last count was made with the scores before the last ones.
    assert first.training["tokens"] == pytest.approx(len(first.encode_batch(texts).ids), rel=0.01)


def test_rules_for_pieces() -> None:
    texts = corpus(800)
    tok = Tokenizer.train(texts, 500, split_digits=True, boundaries=b"\n ", max_piece_bytes=9)
    for piece in tok.pieces[256:]:
        piece.decode()
        assert 2 <= len(piece) <= 9
        assert not set(piece) & set(b"\n 0123456789")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loose = Tokenizer.train(texts, 3000, characters_whole=False, boundaries=b"")
    assert any(b"\n" in piece for piece in loose.pieces[256:])
    assert any(piece[0] & 0xC0 == 0x80 for piece in loose.pieces[256:])


def test_a_small_corpus_gives_a_small_vocabulary_and_says_so() -> None:
    with pytest.warns(UserWarning, match="too few pieces that occur 2 times"):
        tok = Tokenizer.train(["abcabc"], 300)
    assert tok.vocab_size < 300
    assert tok.decode(tok.encode("abcabc")) == "abcabc"
