"""Diversity, repetition and copying, each against the same thing written as a loop."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.evaluate import (
    copied_fraction,
    copied_spans,
    distinct_n,
    ngram_divergence,
    reference,
    repetition,
    sample_quality,
    samples,
)

few = st.binary(max_size=60).map(lambda x: bytes(b % 3 + 97 for b in x))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=5), st.integers(1, 5))
def test_distinct_n_is_a_count(texts: list[list[int]], n: int) -> None:
    grams = Counter(tuple(t[i : i + n]) for t in texts for i in range(len(t) - n + 1))
    if grams:
        assert distinct_n(texts, n) == len(grams) / grams.total()
    else:
        assert math.isnan(distinct_n(texts, n))


def test_distinct_n_takes_strings_and_ids_alike() -> None:
    assert distinct_n(["abab", "b"], 2) == distinct_n([[1, 2, 1, 2], [2]], 2) == 2 / 3


def test_repetition() -> None:
    assert repetition([1, 2, 3, 4, 5], 2) == 0
    assert repetition("aaaaaaa", 4) == 0.75
    assert math.isnan(repetition("abc", 4))


@settings(max_examples=150, deadline=None)
@given(few, few, st.integers(1, 9))
def test_copied_fraction_is_exact(text: bytes, train: bytes, n: int) -> None:
    assert copied_fraction(text, train, n) == reference.copied_fraction(text, train, n)


@settings(max_examples=30, deadline=None)
@given(few, few, st.integers(1, 6))
def test_copying_over_the_borders_of_blocks(text: bytes, train: bytes, n: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "TRAIN_AT_ONCE", 7)
        assert copied_fraction(text, train, n) == reference.copied_fraction(text, train, n)


@settings(max_examples=30, deadline=None)
@given(few, few, st.integers(2, 6))
def test_equal_hashes_of_other_strings_do_not_count(text: bytes, train: bytes, n: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "_hashes", lambda x, n: np.zeros(len(x) - n + 1, dtype=np.uint64))
        assert copied_fraction(text, train, n) == reference.copied_fraction(text, train, n)


def test_copied_spans_of_several_texts() -> None:
    train = b"In the beginning God created the heaven and the earth."
    texts = [b"xx the beginning God yy created the heaven", b"", b"short", train]
    found = copied_spans(texts, train, n=8)
    assert [[texts[i][a:b] for a, b in spans] for i, spans in enumerate(found)] == [
        [b" the beginning God ", b" created the heaven"],
        [],
        [],
        [train],
    ]


def test_a_lattice_text_of_equal_bytes() -> None:
    assert copied_fraction(b"a" * 2100, b"a" * 1025 + b"b", 1024) == 1.0
    assert copied_fraction(b"a" * 2100, b"a" * 1023 + b"b", 1024) == 0.0


@settings(max_examples=80, deadline=None)
@given(few, few, st.integers(1, 9))
def test_ngram_divergence_is_jensen_shannon(a: bytes, b: bytes, n: int) -> None:
    got = ngram_divergence(a, b, n)
    if min(len(a), len(b)) < n:
        assert math.isnan(got)
    else:
        assert got == pytest.approx(reference.ngram_divergence(a, b, n), abs=1e-12)
        assert 0 <= got <= 1


def test_divergence_at_its_ends() -> None:
    assert ngram_divergence(b"abcabcab", b"abcabcab") == 0
    assert ngram_divergence(b"aaaa", b"bbbb") == 1


def test_sample_quality_stands_beside_real_text() -> None:
    train = "床前明月光，疑是地上霜。举头望明月，低头思故乡。".encode() * 3
    held_out = ["And the earth was without form, and void; and darkness was upon the face of the deep."] * 2
    found = sample_quality(["床前明月光，疑是地上霜。", "aaaaaaaa"], held_out, train)
    names = ["distinct_1", "distinct_2", "distinct_4", "repetition", "copied", "divergence"]
    assert list(found) == [*names, *(f"reference_{name}" for name in names)]
    assert found["copied"] == pytest.approx(36 / 44)
    assert found["repetition"] == pytest.approx((0 + 0.8) / 2)
    assert found["reference_copied"] == 0
    assert found["divergence"] == 1 > found["reference_divergence"]


def test_sample_quality_of_nothing_is_nan() -> None:
    assert all(math.isnan(x) for x in sample_quality([], "held out", "train").values())
    assert math.isnan(sample_quality(["longer than it"], "held", "train")["reference_distinct_1"])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call",
    [
        lambda: distinct_n(["a"], 0),
        lambda: copied_fraction(b"a", b"a", 0),
        lambda: ngram_divergence(b"a", b"a", -1),
    ],
)
def test_n_is_at_least_one(call) -> None:
    with pytest.raises(ValueError, match=r"n = .*n >= 1"):
        call()
