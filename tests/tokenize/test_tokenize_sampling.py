"""Draws, against the law that they are said to have: chi-square tests at fresh seeds, and their power."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from scipy import stats

from lmlab.tokenize import Tokenizer, reference
from segmentation_cases import Case, cases, p_value, uniformity

Law = Callable[[reference.Vocabulary, bytes, float], dict[reference.Segmentation, float]]
Draws = list[tuple[int, ...]]


def drawn(case: Case, count: int, method: str = "exact") -> Draws:
    encoded = case.tok.encode_batch(
        [case.text] * count,
        alpha=case.alpha,
        seed=secrets.randbits(64),
        method=method,  # type: ignore[arg-type]
    )
    return [tuple(ids) for ids in encoded.tolist()]


def p_values(
    some: Sequence[Case], count: int, law: Law = reference.law, draw: Callable[[Case, int], Draws] = drawn
) -> Iterator[float]:
    for case in some:
        by_ids = {case.ids(y): q for y, q in law(case.vocabulary, case.text, case.alpha).items()}
        p = p_value(draw(case, count), by_ids)
        if p is not None:
            yield p


def accepted(make: Callable[[int], list[float]]) -> bool:
    """Whether p-values are uniform. A false alarm (p < 1e-3) is asked once more with four times the draws, so a
    right law fails one run of the tests in a million, although seeds are fresh."""
    return uniformity(make(2000)) > 1e-3 or uniformity(make(8000)) > 1e-3


def wide(case: Case) -> Case:
    """The same law from scores that no double holds the exponentials of: each byte costs 1000 more."""
    tok = Tokenizer(list(case.vocabulary), [s - 1000 * len(piece) for piece, s in case.vocabulary.items()])
    return case._replace(tok=tok)


TRIPLES = list(cases(170, seed=10))


def test_draws_follow_the_law_over_a_hundred_triples() -> None:
    found: list[float] = []

    def make(count: int) -> list[float]:
        found[:] = p_values(TRIPLES, count)
        return found

    assert accepted(make)
    assert len(found) >= 100
    assert min(found) > 1e-9


def test_draws_from_scores_far_apart_follow_the_same_law() -> None:
    some = [wide(case) for case in TRIPLES if case.alpha > 0]
    assert all(case.tok.scores.min() * case.alpha < -100 for case in some)
    assert accepted(lambda count: list(p_values(some, count)))


def test_the_test_rejects_the_biased_rule() -> None:
    found = list(p_values(TRIPLES, 2000, draw=lambda case, count: drawn(case, count, "viterbi-sampling")))
    assert uniformity(found) < 1e-9
    assert min(found) < 1e-30


def test_the_test_rejects_the_compounded_temperature() -> None:
    rng = np.random.default_rng()

    def draw(case: Case, count: int) -> Draws:
        law = reference.compounded_law(case.vocabulary, case.text, case.alpha)
        cells = rng.multinomial(count, np.array(list(law.values())) / math.fsum(law.values()))
        return [case.ids(y) for y, times in zip(law, cells.tolist(), strict=True) for _ in range(times)]

    assert uniformity(list(p_values(TRIPLES, 2000, draw=draw))) < 1e-9
    # and it doesn't reject what is right: the compounded law against itself
    assert accepted(lambda count: list(p_values(TRIPLES, count, reference.compounded_law, draw)))


def test_the_biased_rule_follows_the_law_of_its_own_branches() -> None:
    some = list(cases(60, seed=11, longest=6, pieces=6))
    assert accepted(
        lambda count: list(
            p_values(
                some,
                count,
                reference.viterbi_sampling_law,
                lambda case, count: drawn(case, count, "viterbi-sampling"),
            )
        )
    )


def test_with_two_candidates_the_biased_rule_is_exact() -> None:
    vocabulary = {b"a": -1.0, b"b": -2.0, b"ab": -2.6}
    biased = reference.viterbi_sampling_law(vocabulary, b"ab", 0.7)
    for y, q in reference.law(vocabulary, b"ab", 0.7).items():
        assert biased[y] == pytest.approx(q, rel=1e-12)


def test_how_far_the_biased_rule_is_off() -> None:
    vocabulary = {piece: -1.0 - 0.1 * i for i, piece in enumerate([b"a", b"b", b"ab", b"ba", b"aba", b"bab"])}
    right = reference.law(vocabulary, b"abababab", 0.5)
    wrong = reference.viterbi_sampling_law(vocabulary, b"abababab", 0.5)
    assert math.fsum(wrong.values()) == pytest.approx(1, abs=1e-12)
    assert 0.5 * math.fsum(abs(right[y] - wrong.get(y, 0.0)) for y in right) > 0.1


def test_without_replacement_pairs_have_their_frequency() -> None:
    def make(count: int) -> list[float]:
        found = []
        for case in cases(40, seed=12, longest=6, pieces=5):
            law = reference.law(case.vocabulary, case.text, case.alpha)
            if not 2 <= len(law) <= 12:
                continue
            pairs = {
                (*case.ids(a), -1, *case.ids(b)): law[a] * law[b] / (1 - law[a])
                for a in law
                for b in law
                if a != b and law[a] < 1
            }
            draws = []
            for _ in range(count // 4):
                found_pair = case.tok.sample_without_replacement(case.text, 2, alpha=case.alpha)
                draws.append((*found_pair[0][0], -1, *found_pair[1][0]))
            p = p_value(draws, pairs)
            if p is not None:
                found.append(p)
        assert len(found) > 15
        return found

    assert accepted(make)


def test_without_replacement_all_are_a_permutation_with_their_log_probabilities() -> None:
    for case in cases(40, seed=13):
        law = {case.ids(y): q for y, q in reference.law(case.vocabulary, case.text, case.alpha).items()}
        found = case.tok.sample_without_replacement(case.text, 10**6, alpha=case.alpha, seed=4)
        assert sorted(tuple(ids) for ids, _ in found) == sorted(law)
        for ids, value in found:
            assert value == pytest.approx(math.log(law[tuple(ids)]), rel=1e-9, abs=1e-9)
            assert value == pytest.approx(case.tok.logprob(ids, alpha=case.alpha), rel=1e-9, abs=1e-9)
        assert found == case.tok.sample_without_replacement(case.text, 10**6, alpha=case.alpha, seed=4)
        few = case.tok.sample_without_replacement(case.text, 3, alpha=case.alpha, seed=4)
        assert few == found[:3]


LONG = Tokenizer(
    [b"the ", b"th", b"he", b"e ", b"he ", b"an", b"and ", b"nd", b"d "],
    [-2.0, -3.0, -3.2, -2.9, -3.5, -3.1, -2.4, -3.3, -3.0],
)


@pytest.mark.parametrize("alpha", [0.1, 0.7, 1.5])
def test_expected_tokens_of_a_long_text(alpha: float) -> None:
    text = "the hand and then the end " * 40
    encoded = LONG.encode_batch([text] * 600, alpha=alpha, seed=secrets.randbits(64))
    counts = np.stack([np.bincount(ids, minlength=LONG.vocab_size) for ids in encoded])
    expected = LONG.marginals(text, alpha=alpha)
    lengths = np.diff(encoded.offsets)
    assert abs(lengths.mean() - expected.sum()) < 5 * lengths.std() / math.sqrt(600)
    spread = counts.std(axis=0) / math.sqrt(600)
    rare = 10 / 600  # what is rarer than the 600 draws can show
    assert (np.abs(counts.mean(axis=0) - expected) <= 6 * spread + rare).all()
    assert not counts[:, expected == 0].any()
    # the entropy is the expected code length of the draws
    codes = np.array([-LONG.logprob(ids, alpha=alpha) for ids in encoded[:200]])
    assert abs(codes.mean() - LONG.entropy(text, alpha=alpha)) < 5 * codes.std() / math.sqrt(200)


def test_streams_are_independent_and_seeds_differ() -> None:
    text = "and the "
    first = [tuple(ids) for ids in LONG.encode_batch([text] * 4000, alpha=0.3, seed=0).tolist()]
    kinds = [y for y, _ in Counter(first).most_common(6)]
    place = {y: i for i, y in enumerate(kinds)}

    def table(pairs: Iterator[tuple[tuple[int, ...], tuple[int, ...]]]) -> float:
        cells = np.zeros((7, 7))
        for a, b in pairs:
            cells[place.get(a, 6), place.get(b, 6)] += 1
        return float(stats.chi2_contingency(cells).pvalue)

    assert table(zip(first[0::2], first[1::2], strict=True)) > 1e-6  # neighbouring streams
    second = [tuple(ids) for ids in LONG.encode_batch([text] * 4000, alpha=0.3, seed=1).tolist()]
    assert table(zip(first, second, strict=True)) > 1e-6  # neighbouring seeds
    assert LONG.encode(text * 20, alpha=0.3) != LONG.encode(text * 20, alpha=0.3)  # fresh entropy


def test_great_alpha_is_viterbi_and_zero_is_uniform() -> None:
    text = "the hand and then "
    assert LONG.encode(text, alpha=1e6, seed=1) == LONG.encode(text)
    assert LONG.entropy(text, alpha=200.0) == pytest.approx(0, abs=1e-6)
    count = len(LONG.nbest("the and ", 10**6))
    assert LONG.log_partition("the and ", alpha=0.0) == pytest.approx(math.log(count), rel=1e-12)
    assert LONG.entropy("the and ", alpha=0.0) == pytest.approx(math.log(count), rel=1e-12)


def in_another_process(pickled: bytes) -> list[list[int]]:
    tok = pickle.loads(pickled)
    return tok.encode_batch(["the hand and then "] * 50, alpha=0.4, seed=9, threads=2).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_draw_the_same(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    here = in_another_process(pickle.dumps(LONG))
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(in_another_process, (pickle.dumps(LONG),)) == here
