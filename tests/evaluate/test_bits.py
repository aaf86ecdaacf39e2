"""Bits per byte: each token once, whatever the windows and batches."""

import math
from collections.abc import Iterator
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lmlab.evaluate import BitsPerByte, bits_per_byte, reference


class ByteTokenizer:
    """One id a byte; the end token is 256."""

    special_tokens = MappingProxyType({"<eos>": 256})

    def encode(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


class Causal(nn.Module):
    """A causal model whose logits depend on all the ids of its window, in float64."""

    def __init__(self, vocabulary: int = 257) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embedding = nn.Parameter(torch.randn(vocabulary, 6, generator=generator, dtype=torch.float64))
        self.output = nn.Parameter(torch.randn(vocabulary, 6, generator=generator, dtype=torch.float64))

    def features(self, ids: Tensor) -> Tensor:
        weights = 0.9 ** torch.arange(ids.shape[1], dtype=torch.float64)
        return torch.tanh(torch.cumsum(self.embedding[ids] * weights[:, None], 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.features(ids) @ self.output.T


class WithHidden(Causal):
    """The same law through `hidden` and `head`; calling it whole would be a waste of memory."""

    @property
    def head(self) -> Tensor:
        return self.output

    def hidden(self, ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(h=self.features(ids))

    def forward(self, ids: Tensor) -> Tensor:
        raise AssertionError("the logits were made whole")


DOCUMENTS = ["In the beginning", "", "床前明月光", "a", b"\xff\x00raw", "x" * 70]


def encoded() -> list[list[int]]:
    return [ByteTokenizer().encode(text) for text in DOCUMENTS]


def sizes() -> list[int]:
    return [len(ids) for ids in encoded()]


@pytest.mark.parametrize(
    ("length", "stride"), [(1, 1), (8, 1), (8, 8), (8, 3), (16, 5), (256, 256), (256, 1)]
)
@pytest.mark.parametrize("model", [Causal(), WithHidden()], ids=["logits", "hidden"])
def test_equals_a_loop_over_tokens(model: Causal, length: int, stride: int) -> None:
    got = bits_per_byte(model, ByteTokenizer(), DOCUMENTS, length=length, stride=stride, batch_size=4)
    expected = reference.bits_per_byte(Causal(), encoded(), sizes(), 256, length, stride)
    assert got.value == pytest.approx(expected, rel=1e-10)
    assert (got.tokens, got.bytes, got.documents) == (sum(sizes()) + 6, sum(sizes()), 6)
    assert got.bytes_per_token == got.bytes / got.tokens


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(6)), batch=st.integers(1, 9), stride=st.integers(1, 8))
def test_batches_and_order_do_not_matter(order: list[int], batch: int, stride: int) -> None:
    model = Causal()
    one = bits_per_byte(model, ByteTokenizer(), DOCUMENTS, length=8, stride=stride, batch_size=1)
    other = bits_per_byte(
        model, ByteTokenizer(), [DOCUMENTS[i] for i in order], length=8, stride=stride, batch_size=batch
    )
    assert other.value == pytest.approx(one.value, rel=1e-10)
    assert other.tokens == one.tokens


@pytest.mark.parametrize("vocabulary", [257, 1000])
def test_a_uniform_model_costs_log2_of_its_vocabulary(vocabulary: int) -> None:
    got = bits_per_byte(
        lambda ids: torch.zeros(*ids.shape, vocabulary), ByteTokenizer(), DOCUMENTS, length=5, stride=2
    )
    assert got.value == pytest.approx(got.tokens * math.log2(vocabulary) / got.bytes, rel=1e-6)


def test_every_target_is_scored_once() -> None:
    """A model that marks where it is asked: the targets of each document come back in full, in order."""
    rows: list[Tensor] = []

    def model(ids: Tensor) -> Tensor:
        rows.append(ids)
        return torch.zeros(*ids.shape, 257)

    got = bits_per_byte(model, ByteTokenizer(), ["abcdefghij"], length=4, stride=2, batch_size=1)
    assert got.tokens == 11
    assert [r[0].tolist() for r in sorted(rows, key=lambda r: r[0, -1].item())]
    assert max(r.shape[1] for r in rows) == 4
    assert sum(r.shape[1] for r in rows) == 4 * 4 + 3  # inputs 0-3, 2-5, 4-7, 6-9, 8-10


def test_documents_may_be_an_iterator_and_logits_an_attribute() -> None:
    def texts() -> Iterator[str]:
        yield "ab"
        yield "c"

    model = Causal()
    got = bits_per_byte(lambda ids: SimpleNamespace(logits=model(ids)), ByteTokenizer(), texts(), length=9)
    assert got.value == pytest.approx(bits_per_byte(model, ByteTokenizer(), ["ab", "c"], length=9).value)


def test_the_length_is_the_models_and_its_mode_comes_back() -> None:
    model = Causal()
    model.config = SimpleNamespace(max_length=7)
    assert model.training
    got = bits_per_byte(model, ByteTokenizer(), DOCUMENTS)
    assert model.training
    assert got == bits_per_byte(model, ByteTokenizer(), DOCUMENTS, length=7, stride=7)


def test_more_windows_than_a_pool() -> None:
    text = ["abcde" * 30]
    got = bits_per_byte(Causal(), ByteTokenizer(), text, length=3, stride=1, batch_size=1)
    assert got.value == pytest.approx(
        reference.bits_per_byte(Causal(), [list(text[0].encode())], [150], 256, 3, 1), rel=1e-10
    )


def test_value_is_bits_for_each_byte() -> None:
    assert BitsPerByte(nats=math.log(2) * 30, tokens=5, bytes=10, documents=1).value == pytest.approx(3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"length": 0}, "length = 0"),
        ({"stride": 9}, r"stride = 9; accepted is 1 … length = 8"),
        ({"stride": 0}, "stride = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"length": None}, "no config.max_length"),
        ({"documents": "one text"}, "documents is one str"),
        ({"documents": []}, "documents hold no bytes"),
        ({"documents": ["", ""]}, r"no bytes \(2 documents\)"),
        ({"tokenizer": SimpleNamespace(special_tokens={})}, "no special token '<eos>'.*special_tokens="),
    ],
)
def test_bad_input(change: dict[str, object], text: str) -> None:
    call = {"model": Causal(), "tokenizer": ByteTokenizer(), "documents": ["ab"], "length": 8} | change
    with pytest.raises(ValueError, match=text):
        bits_per_byte(**call)
