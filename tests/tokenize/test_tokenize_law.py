"""The law of segmentations, against every segmentation written out."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.tokenize import Tokenizer, reference
from segmentation_cases import cases


def test_partition_entropy_marginals_and_log_probabilities() -> None:
    for case in cases(150, seed=1):
        vocabulary, text, alpha, tok = case
        log_z = tok.log_partition(text, alpha=alpha)
        assert log_z == pytest.approx(reference.log_partition(vocabulary, text, alpha), rel=1e-10, abs=1e-10)
        entropy = reference.entropy(vocabulary, text, alpha)
        assert tok.entropy(text, alpha=alpha) == pytest.approx(entropy, rel=1e-10, abs=1e-10)
        expected = np.zeros(tok.vocab_size)
        for piece, count in reference.marginals(vocabulary, text, alpha).items():
            expected[tok.piece_to_id(piece)] = count
        np.testing.assert_allclose(tok.marginals(text, alpha=alpha), expected, rtol=1e-10, atol=1e-12)
        law = reference.law(vocabulary, text, alpha)
        found = {y: tok.logprob(case.ids(y), alpha=alpha) for y in law}
        assert math.fsum(math.exp(value) for value in found.values()) == pytest.approx(1, abs=1e-10)
        for y, value in found.items():
            assert value == pytest.approx(math.log(law[y]), rel=1e-10, abs=1e-10)


def test_lattice_holds_every_edge_with_its_posterior() -> None:
    for vocabulary, text, alpha, tok in cases(60, seed=2):
        expected: dict[tuple[int, int], float] = {
            (a, b): 0.0
            for a in range(len(text))
            for b in range(a + 1, len(text) + 1)
            if text[a:b] in vocabulary
        }
        for y, q in reference.law(vocabulary, text, alpha).items():
            at = 0
            for piece in y:
                expected[at, at + len(piece)] += q
                at += len(piece)
        lattice = tok.lattice(text, alpha=alpha)
        edges = list(zip(lattice.start.tolist(), lattice.end.tolist(), strict=True))
        assert edges == sorted(expected)
        assert [tok.pieces[i] for i in lattice.ids] == [text[a:b] for a, b in edges]
        np.testing.assert_allclose(lattice.probability, [expected[e] for e in edges], rtol=1e-10, atol=1e-13)
        assert lattice.start.dtype == lattice.end.dtype == np.int64
        assert lattice.ids.dtype == np.uint32


def test_nbest_lists_all_segmentations_in_falling_order() -> None:
    for case in cases(100, seed=3):
        everything = {
            case.ids(y): reference.score(case.vocabulary, y)
            for y in reference.segmentations(case.vocabulary, case.text)
        }
        found = case.tok.nbest(case.text, 10**6)
        assert {tuple(ids) for ids, _ in found} == set(everything)
        values = [value for _, value in found]
        assert values == sorted(values, reverse=True)
        np.testing.assert_allclose(values, [everything[tuple(ids)] for ids, _ in found], rtol=1e-12)
        n = len(found) // 2 + 1
        np.testing.assert_allclose(
            [value for _, value in case.tok.nbest(case.text, n)], values[:n], rtol=1e-14
        )
        assert case.tok.nbest(case.text, 1)[0][0] == case.tok.encode(case.text)


def test_viterbi_is_the_plain_recursion() -> None:
    for case in cases(300, seed=4, longest=40):
        vocabulary, text, _, tok = case
        assert tuple(tok.encode(text)) == case.ids(reference.viterbi(vocabulary, text))


def test_on_ties_the_longest_last_piece_wins() -> None:
    tok = Tokenizer([b"a", b"b", b"ab", b"ba", b"aba"], [-1.0, -1.0, -2.0, -2.0, -3.0])
    assert tok.encode("aba") == [4]
    assert tok.encode("ababa") == [*tok.encode("ab"), 4] == [2, 4]
    flat = Tokenizer([b"a", b"aa", b"aaa"], [-1.0, -2.0, -3.0])
    rng = random.Random(0)
    for _ in range(200):
        text = bytes(rng.choice(b"aab") for _ in range(rng.randint(1, 30)))
        given = {piece: float(s) for piece, s in zip(flat.pieces, flat.scores, strict=True)}
        assert [flat.pieces[i] for i in flat.encode(text)] == list(reference.viterbi(given, text))


REAL = (
    "对于Unigram分词器，随机性可以完全来自采样。The sum over all segmentations is exact, 12,345 times.\n"
    "    def encode(self, text: str) -> list[int]:\n        return self.core.encode(text)\n" * 12
)


def test_viterbi_on_real_text_and_no_draw_is_better() -> None:
    tok = Tokenizer.train(REAL.splitlines(keepends=True), 420)
    vocabulary = {piece: float(score) for piece, score in zip(tok.pieces, tok.scores, strict=True)}
    for line in REAL.splitlines()[:3]:
        best = tok.encode(line)
        assert [tok.pieces[i] for i in best] == list(reference.viterbi(vocabulary, line.encode()))
        top = math.fsum(tok.scores[best])
        draws = tok.encode_batch([line] * 50, alpha=0.6, seed=1).tolist()
        assert all(math.fsum(tok.scores[ids]) <= top + 1e-9 for ids in draws)
        assert tok.nbest(line, 1)[0] == (best, pytest.approx(top))


SOME = Tokenizer([b"ab", b"abc", b"bc", b"ca", b"a", b"b", b"c"], [-1.0, -1.7, -1.2, -2.0, -1.5, -1.1, -0.9])


@settings(max_examples=80, deadline=None)
@given(
    data=st.binary(max_size=60) | st.lists(st.sampled_from(b"abc"), max_size=60).map(bytes),
    cut=st.integers(0, 60),
    alpha=st.sampled_from([0.0, 0.4, 1.0, 2.5]),
)
def test_cutting_a_text_loses_segmentations(data: bytes, cut: int, alpha: float) -> None:
    whole = SOME.log_partition(data, alpha=alpha)
    parts = SOME.log_partition(data[:cut], alpha=alpha) + SOME.log_partition(data[cut:], alpha=alpha)
    assert whole >= parts - 1e-9 * max(1.0, abs(parts))
    ids = SOME.encode(data)
    assert SOME.logprob(ids, alpha=alpha) <= 1e-9
    entropy = SOME.entropy(data, alpha=alpha)
    assert 0 <= entropy <= SOME.log_partition(data, alpha=0.0) + 1e-9


def test_the_empty_text() -> None:
    for empty in ("", b""):
        assert SOME.encode(empty) == []
        assert SOME.encode(empty, alpha=0.5, seed=1) == []
        assert SOME.log_partition(empty) == 0.0
        assert SOME.entropy(empty) == 0.0
        assert SOME.nbest(empty, 3) == [([], 0.0)]
        assert SOME.sample_without_replacement(empty, 3, seed=1) == [([], 0.0)]
        assert not SOME.marginals(empty).any()
        assert len(SOME.lattice(empty).start) == 0
        assert SOME.offsets(empty, []).shape == (0, 2)
    assert SOME.logprob([]) == 0.0
    assert SOME.decode([]) == ""
    assert SOME.encode_batch([]).tolist() == []
    assert SOME.encode_batch(["", "ab", ""]).tolist() == [[], [0], []]


@pytest.mark.parametrize("alpha", [0.01, 1.0, 3.0])
def test_a_mebibyte_of_one_letter(alpha: float) -> None:
    tok = Tokenizer([b"a", b"aa", b"aaaaa"], [-3.0, -5.0, -11.0])
    text = b"a" * 2**20
    log_z = tok.log_partition(text, alpha=alpha)
    # Z_n = w1 Z_(n-1) + w2 Z_(n-2) + w5 Z_(n-5): its growth is the greatest root of the recursion.
    weights = [math.exp(-3 * alpha), math.exp(-5 * alpha), 0.0, 0.0, math.exp(-11 * alpha)]
    growth = float(np.roots([1.0, *(-w for w in weights)]).real.max())
    assert log_z / 2**20 == pytest.approx(math.log(growth), abs=1e-5)
    marginals = tok.marginals(text, alpha=alpha)
    assert marginals[:3] @ np.array([1, 2, 5]) == pytest.approx(2**20, rel=1e-9)
    ids = tok.encode_batch([text], alpha=alpha, seed=3).ids
    counts = np.bincount(ids, minlength=3)[:3]
    assert counts @ np.array([1, 2, 5]) == 2**20
    np.testing.assert_allclose(counts, marginals[:3], rtol=0, atol=6 * math.sqrt(2**20))
    lattice = tok.lattice(text[:20_000], alpha=alpha)
    leaving = np.bincount(lattice.start, lattice.probability, minlength=20_000)
    assert leaving[0] == pytest.approx(1, abs=1e-9)


def test_weights_too_far_apart_for_one_double() -> None:
    tok = Tokenizer([b"ab", b"b", b"a"], [-2000.0, -1000.5, -1000.0])
    assert tok.log_partition("ab") == pytest.approx(-2000 + math.log1p(math.exp(-0.5)), rel=1e-13)
    draws = tok.encode_batch(["ab"] * 4000, alpha=1.0, seed=5)
    whole = np.mean(np.diff(draws.offsets) == 1)
    assert whole == pytest.approx(1 / (1 + math.exp(-0.5)), abs=5 * math.sqrt(0.25 / 4000))


def test_a_vocabulary_of_bytes_alone_and_one_piece_as_long_as_the_text() -> None:
    bare = Tokenizer([], [])
    assert bare.vocab_size == 256
    data = bytes(range(256)) * 3
    assert bare.encode(data) == list(data)
    assert bare.entropy(data) == pytest.approx(0, abs=1e-9)
    longest = bytes(range(255))
    tok = Tokenizer([longest], [-1.0])
    assert tok.encode(longest) == [0]
    assert tok.encode(longest * 2) == [0, 0]


def test_two_hundred_thousand_pieces() -> None:
    pieces = [b"%06d" % i for i in range(200_000)]
    tok = Tokenizer(pieces, [-12.0] * len(pieces))
    assert tok.encode(b"199999000000123456") == [199_999, 0, 123_456]
    assert tok.decode([199_999, 5]) == "199999000005"
