"""The fast path finds every piece, wherever a text is cut into blocks, lanes and groups."""

from __future__ import annotations

import random

import pytest

from lmlab.tokenize import Tokenizer

BORDERS = [
    1,
    2,
    143,
    144,
    145,
    4095,
    4096,
    4097,
    8191,
    8192,
    8193,
    12_345,
]  # of blocks and groups, and near them


def vocabulary(rng: random.Random, letters: bytes, longest: int, scores: list[float] | None) -> Tokenizer:
    pieces = {bytes(rng.choices(letters, k=rng.randint(2, longest))) for _ in range(40)}
    pieces |= {
        letters[:1] * longest,
        letters[:2] * (longest // 2),
        letters[:1] * 3,
        letters[1:2] + letters[:1] * 2,
    }
    pieces |= {bytes([letter]) for letter in letters}
    ordered = sorted(pieces, key=lambda piece: rng.random())
    return Tokenizer(ordered, [rng.choice(scores) if scores else -rng.random() * 9 for _ in ordered])


def best(told: dict[bytes, float], text: bytes, longest: int) -> list[bytes]:
    """`reference.viterbi`, which tries longer pieces than there are."""
    score, last = [0.0], [b""]
    for end in range(1, len(text) + 1):
        starts = [a for a in range(max(0, end - longest), end) if text[a:end] in told]  # longest piece first
        sums = [score[a] + told[text[a:end]] for a in starts]
        score.append(max(sums))
        last.append(text[starts[sums.index(max(sums))] : end])
    found = []
    end = len(text)
    while end:
        found.append(last[end])
        end -= len(last[end])
    return found[::-1]


@pytest.mark.parametrize("longest", [3, 18, 255])
@pytest.mark.parametrize("scores", [[-1.0, -2.0], None], ids=["ties", "no ties"])
def test_blocks_and_lanes_change_no_id(longest: int, scores: list[float] | None) -> None:
    rng = random.Random(longest)
    letters = b"ab\xe4\x00"
    tok = vocabulary(rng, letters, longest, scores)
    told = dict(zip(tok.pieces, tok.scores.tolist(), strict=True))
    for size in BORDERS if longest < 100 else [300, 4097]:
        text = bytes(rng.choices(letters, [9, 2, 1, 1], k=size))
        found = [tok.pieces[i] for i in tok.encode(text)]
        assert found == best(told, text, longest), size


@pytest.mark.parametrize("alpha", [None, 0.3, 40.0])
def test_groups_change_no_id(alpha: float | None) -> None:
    rng = random.Random(5)
    tok = vocabulary(rng, b"ab\xe4\x00", 60, None)
    sizes = [0, 0, *BORDERS, 0, 1, *(rng.randrange(90) for _ in range(400)), 0, 9000, 0]
    texts = [bytes(rng.choices(b"aaab\xe4\x00", k=size)) for size in sizes]
    drawn = {} if alpha is None else {"alpha": alpha, "seed": 3}
    together = tok.encode_batch(texts, threads=1, **drawn).tolist()
    assert together == tok.encode_batch(texts, threads=3, **drawn).tolist()
    for i, text in enumerate(texts):
        assert together[i] == tok.encode(text, **({**drawn, "stream": i} if drawn else {}))
        assert tok.decode_bytes(together[i]) == text


def test_a_piece_reaches_over_no_border_of_texts() -> None:
    tok = Tokenizer([b"ab", b"abab", b"ba"], [5.0, 50.0, 5.0])
    ids = tok.encode_batch(["a", "b", "aba", "bab", "", "b"])
    assert [[tok.pieces[i] for i in one] for one in ids] == [
        [b"a"],
        [b"b"],
        [b"a", b"ba"],
        [b"b", b"ab"],
        [],
        [b"b"],
    ]
    drawn = tok.encode_batch(["a", "b", "aba", "bab", "", "b"] * 50, alpha=1.0, seed=1)
    assert [tok.decode(one) for one in drawn] == ["a", "b", "aba", "bab", "", "b"] * 50


@pytest.mark.bad_input
def test_scores_beyond_a_double_are_told() -> None:
    tok = Tokenizer([b"a"], [-1.7e308])
    assert tok.encode("a") == [0]
    with pytest.raises(
        OverflowError, match=r"scores of a text add up to less than -1\.7e308: give smaller scores"
    ):
        tok.encode("aa")
