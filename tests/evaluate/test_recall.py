"""The recall model's data is what it says: repeated passages, and pairs that are asked for again."""

import pytest

from lmlab.evaluate.recall import ALPHABET, recall_documents


def test_even_documents_repeat_a_passage() -> None:
    for text in recall_documents(40, train_length=64, seed=3)[::2]:
        assert any(text[p:] == text[:-p] for p in range(8, 52))


def test_odd_documents_ask_for_pairs_already_given() -> None:
    for text in recall_documents(40, train_length=64, symbols=10, seed=3)[1::2]:
        known: dict[str, str] = {}
        again = 0
        for key, value in zip(text[::2], text[1::2], strict=False):
            again += key in known
            assert known.setdefault(key, value) == value
        assert again >= len(known) // 2


def test_one_byte_a_symbol_and_the_same_from_the_same_seed() -> None:
    documents = recall_documents(6, train_length=32, symbols=5, seed=1)
    assert {len(text.encode()) for text in documents} == {33}
    assert set("".join(documents)) <= set(ALPHABET[:5])
    assert documents[:3] == recall_documents(3, train_length=32, symbols=5, seed=1)
    assert documents != recall_documents(6, train_length=32, symbols=5, seed=2)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count must be >= 0, got -1"),
        ({"train_length": 8}, "train_length must be >= 16, got 8"),
        ({"symbols": 65}, "symbols must be between 2 and 64, got 65"),
    ],
)
def test_bad_sizes_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_documents(**{"count": 1, "train_length": 64} | arguments)
