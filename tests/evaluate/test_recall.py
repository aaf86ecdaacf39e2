"""The recall model's data is what it says: repeated passages, and pairs that are asked for again."""

import re
from collections import Counter
from typing import Any

import pytest

from lmlab.evaluate.recall import ALPHABET, passage_documents, recall_documents


def test_a_third_of_the_documents_repeat_a_passage() -> None:
    used = set()
    for text in recall_documents(60, train_length=64, length=200, seed=3)[::3]:
        assert any(text[p:] == text[:-p] for p in range(8, 52))
        used.add(len(set(text)))
    assert min(used) < 12 and max(used) > 24


def test_a_third_ask_for_pairs_already_given() -> None:
    for text in recall_documents(60, train_length=64, symbols=10, seed=3)[1::3]:
        known: dict[str, str] = {}
        again = 0
        for key, value in zip(text[::2], text[1::2], strict=False):
            again += key in known
            assert known.setdefault(key, value) == value
        assert again >= len(known) // 2


def test_a_third_come_back_to_a_note_of_digits() -> None:
    between = []
    for text in recall_documents(60, train_length=64, length=400, seed=3)[2::3]:
        notes = re.findall(r"[+-][0-9]*", text)[:-1]  # the last one may be cut
        assert len(set(notes)) == 1 and 4 <= len(notes[0]) <= 9 and len(notes) > 3
        between.append(max(map(len, re.split(r"[+-][0-9]+", text))))
    assert min(between) < 12 and 32 < max(between) < 0.8 * 64


def test_where_text_is_given_a_fourth_comes_back_to_something_within_it() -> None:
    text = "".join(sorted(ALPHABET)) + " .,;:" * 200  # told apart from what comes again by the punctuation
    documents = recall_documents(60, train_length=64, length=400, seed=3, text=text)
    signs = 0
    for found in documents[3::4]:
        again = Counter(part for part in re.split(r"[ .,;:]+", found[100:-20]) if part)
        (passage, times), *_ = again.most_common()
        assert times > 5 and 4 <= len(passage) <= 16
        assert max(map(len, found[100:].split(passage)[1:-1])) < 64 // 3
        signs += re.fullmatch(r"[+-][0-9]{3,8}", passage) is not None
    assert 3 <= signs <= 12
    plain = recall_documents(60, train_length=64, length=400, seed=3)
    assert documents[:3] == plain[:3] and documents[4] != plain[4]


def test_one_byte_a_symbol_and_the_same_from_the_same_seed() -> None:
    documents = recall_documents(6, train_length=32, symbols=5, seed=1)
    assert {len(text.encode()) for text in documents} == {33}
    assert {len(text) for text in recall_documents(6, train_length=32, length=7)} == {7}
    assert set("".join(documents)) <= set(ALPHABET[:5])
    assert documents[:3] == recall_documents(3, train_length=32, symbols=5, seed=1)
    assert documents != recall_documents(6, train_length=32, symbols=5, seed=2)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count must be >= 0, got -1"),
        ({"length": 0}, "length must be >= 1, got 0"),
        ({"train_length": 8}, "train_length must be >= 16, got 8"),
        ({"symbols": 65}, "symbols must be between 4 and 64, got 65"),
        ({"text": "short"}, "text must be ASCII and 65 characters or more, got 5 characters"),
        ({"text": "é" * 65}, "text must be ASCII and 65 characters or more, got characters that aren't"),
    ],
)
def test_bad_sizes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_documents(**{"count": 1, "train_length": 64} | arguments)


def test_passages_near_and_far() -> None:
    texts = passage_documents(200, length=300, periods=(8, 128), seed=1)
    periods = [next(p for p in range(1, 301) if text[p:] == text[:-p]) for text in texts]
    assert min(periods) < 10 and max(periods) > 110 and max(periods) <= 128
    assert 0.4 < sum(p < 32 for p in periods) / 200 < 0.6  # 8 ... 32 is half the way to 128
    assert passage_documents(3, length=300, periods=(8, 128), seed=1) == texts[:3]
    assert passage_documents(1, length=5, periods=(2, 2), symbols=2)[0][:1] in "AB"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"periods": (0, 8)}, r"periods must be two lengths, 1 <= least <= most, got \(0, 8\)"),
        ({"periods": (9, 8)}, r"periods must be"),
        ({"symbols": 1}, "symbols must be between 2 and 64, got 1"),
        ({"length": 0}, "length must be >= 1, got 0"),
    ],
)
def test_passages_say_what_is_wrong(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        passage_documents(**{"count": 1, "length": 10, "periods": (2, 4), **wrong})  # type: ignore[arg-type]
