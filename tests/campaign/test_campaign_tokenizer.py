"""Random byte strings through the tokenizer and back."""

import random
from collections import Counter

import pytest

from campaign.conftest import Tally
from lmlab.tokenize import Tokenizer

BATCH = 10_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    draw = random.Random(2)
    words = ["light", "water", "earth", "春", "月光", "the", "of", "1984", "\n", "é"]
    texts = [" ".join(draw.choices(words, k=30)) for _ in range(200)]
    return Tokenizer.train(texts, vocab_size=400)


def strings(draw: random.Random, pieces: list[bytes], count: int) -> list[bytes]:
    found = []
    for _ in range(count):
        kind, size = draw.randrange(5), draw.choice([0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 40, 64, 100])
        if kind == 0:
            text = draw.randbytes(size)
        elif kind == 1:
            text = bytes([draw.randrange(256)]) * size
        elif kind == 2:
            text = b"".join(draw.choices(pieces, k=size // 3))
        elif kind == 3:
            text = "".join(
                chr(draw.choice([0x41, 0xE9, 0x6625, 0x1F600, 0x0, 0x202E])) for _ in range(size // 2)
            ).encode()
        else:  # pieces, cut and stained
            whole = b"".join(draw.choices(pieces, k=1 + size // 3))
            cut = draw.randrange(len(whole) + 1)
            text = whole[cut:] + draw.randbytes(draw.randrange(3)) + whole[:cut]
        found.append(text)
    return found


def through(tokenizer: Tokenizer, count: int, seed: int) -> Counter[str]:
    draw = random.Random(seed)
    special = set(tokenizer.special_tokens.values())
    pieces = [p for i, p in enumerate(tokenizer.pieces) if i not in special and p]
    outcomes: Counter[str] = Counter()
    for first in range(0, count, BATCH):
        texts = strings(draw, pieces, min(BATCH, count - first))
        sampled = 0.5 if draw.random() < 0.3 else None
        seed_of = None if sampled is None else first
        encoded = list(tokenizer.encode_batch(texts, alpha=sampled, seed=seed_of))
        for text, ids in zip(texts, encoded, strict=True):
            assert tokenizer.decode_bytes(ids) == text, text
        outcomes["the same bytes"] += len(texts)
        for k in draw.sample(range(len(texts)), 20):  # alone as in the batch
            if sampled is None:
                assert list(tokenizer.encode(texts[k])) == list(encoded[k]), texts[k]
    return outcomes


def test_some_strings(tokenizer: Tokenizer) -> None:
    assert through(tokenizer, 5_000, seed=1)["the same bytes"] == 5_000


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_a_million_strings(tokenizer: Tokenizer, tally: Tally) -> None:
    tally("random byte strings through the tokenizer and back", through(tokenizer, 1_000_000, seed=2))
