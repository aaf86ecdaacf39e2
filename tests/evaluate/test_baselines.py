"""The floors: general compressors on the held-out bytes."""

import lzma
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.evaluate import byte_baselines, reference

TRAIN = "春眠不觉晓，处处闻啼鸟。 In the beginning was the word. ".encode() * 40
HELD_OUT = "夜来风雨声，花落知多少。 And the word was good.".encode()


def test_zlib_and_lzma_are_those_of_the_modules() -> None:
    found = byte_baselines(TRAIN, HELD_OUT)
    assert found["uniform"] == 8.0
    assert found["zlib"] == 8 * len(zlib.compress(HELD_OUT, 9)) / len(HELD_OUT)
    whole, before = (len(lzma.compress(x, preset=9 | lzma.PRESET_EXTREME)) for x in (TRAIN + HELD_OUT, TRAIN))
    assert found["lzma"] == 8 * (whole - before) / len(HELD_OUT)


def test_lzma_has_seen_the_training_text() -> None:
    assert byte_baselines(TRAIN + HELD_OUT, HELD_OUT)["lzma"] < 0.5 * byte_baselines(b"", HELD_OUT)["zlib"]


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300), st.binary(min_size=1, max_size=40))
def test_unigram_is_the_add_one_code(train: bytes, held_out: bytes) -> None:
    assert byte_baselines(train, held_out)["unigram"] == pytest.approx(
        reference.unigram(train, held_out), 1e-12
    )


def test_without_training_text_the_unigram_code_is_uniform() -> None:
    assert byte_baselines(b"", b"any")["unigram"] == pytest.approx(8)


@pytest.mark.bad_input
def test_empty_held_out_text_is_refused() -> None:
    with pytest.raises(ValueError, match="held_out is empty"):
        byte_baselines(b"abc", b"")
