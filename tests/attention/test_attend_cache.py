"""A cache in any split gives what one pass gives: one by one, in chunks, and in ragged batches."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extension_cases import EVERY, PLAIN, T0, bands, tensors
from lmlab.attention import attend
from lmlab.model import Decoder, DecoderConfig, DecoderState, PositionOptions
from lmlab.rope import DCA, PI, DynamicNTK, LogN, LongRoPE, NTKAware, ReRoPE, Window, YaRN
from lmlab.rope.reference import attend_reference


@settings(max_examples=60, deadline=None)
@given(
    keys=st.integers(1, 90),
    w=st.integers(1, 40),
    which=st.integers(0, 9),
    cuts=st.sets(st.integers(1, 89), max_size=6),
    seed=st.integers(0, 9),
)
def test_chunks_are_one_pass(keys: int, w: int, which: int, cuts: set[int], seed: int) -> None:
    q, k, v = tensors(keys, h=4, seed=seed)
    call = {"rotary": PLAIN, "extension": [bands(w)[which], LogN(), DynamicNTK(2)], "length": 100}
    whole = attend(q, k, v, **call)
    edges = [0, *sorted(c for c in cuts if c < keys), keys]
    parts = [
        attend(q[:, :, a:b], k[:, :, :b], v[:, :, :b], **call, offset=a) for a, b in itertools.pairwise(edges)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-12)
    ones = attend(q, k, torch.ones_like(v), **call)
    torch.testing.assert_close(ones, torch.ones_like(q), rtol=0, atol=1e-12)


@pytest.mark.parametrize("extension", EVERY, ids=repr)
def test_decoding_one_by_one_is_one_pass(extension: Any) -> None:
    q, k, v = tensors(30)
    call = {"rotary": PLAIN, "extension": extension, "length": 30}
    whole = attend(q, k, v, **call)
    for i in range(30):
        row = attend(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], **call, offset=i)
        torch.testing.assert_close(row, whole[:, :, i : i + 1], rtol=0, atol=1e-12)


def test_dynamic_methods_follow_every_length() -> None:
    q, k, v = tensors(40)
    for extension in (DynamicNTK(2), PI(), YaRN(), LongRoPE((1.0,) * 4, (3.0,) * 4)):
        for n in (10, T0, T0 + 1, 40):
            got = attend(
                q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n], rotary=PLAIN, extension=extension, offset=n - 1
            )
            want = attend_reference(
                q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n], rotary=PLAIN, extension=extension
            )
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("extension", EVERY, ids=repr)
@pytest.mark.parametrize("t", [1, 3, 20])
def test_ragged_offsets_are_each_row_alone(extension: Any, t: int) -> None:
    q, k, v = tensors(t, 60, b=4, h=4, hk=2)
    offset = torch.tensor([0, 40, 13, 27])
    got = attend(q, k, v, rotary=PLAIN, extension=extension, offset=offset)
    for row, start in enumerate(offset.tolist()):
        one = slice(row, row + 1)
        seen = slice(0, start + t)
        alone = attend(
            q[one], k[one, :, seen], v[one, :, seen], rotary=PLAIN, extension=extension, offset=start
        )
        torch.testing.assert_close(got[one], alone, rtol=0, atol=1e-12)


def test_ragged_rows_do_not_see_what_is_not_filled() -> None:
    q, k, v = tensors(1, 12, b=2)
    filled = torch.tensor([3, 11])
    k[0, :, 4:], v[0, :, 4:] = 1e6, 1e6
    got = attend(q, k, v, rotary=PLAIN, extension=ReRoPE(2), offset=filled)
    assert got[0].abs().max() < 10


@settings(max_examples=80, deadline=None)
@given(
    extension=st.sampled_from(EVERY),
    cuts=st.sets(st.integers(1, 46), max_size=8),
    hk=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 9),
)
def test_every_method_in_any_split(extension: Any, cuts: set[int], hk: int, seed: int) -> None:
    q, k, v = tensors(47, b=2, h=4, hk=hk, seed=seed)
    call = {"rotary": PLAIN, "extension": extension, "length": 60}
    whole = attend(q, k, v, **call)
    edges = [0, *sorted(cuts), 47]
    parts = [
        attend(q[:, :, a:b], k[:, :, :b], v[:, :, :b], **call, offset=a) for a, b in itertools.pairwise(edges)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("extension", EVERY, ids=repr)
def test_a_ragged_batch_decoded_in_steps_is_each_row_in_one_pass(extension: Any) -> None:
    """Prompts of 3, 17 and 29 keys go on together, some keys a step, into caches that are not yet full."""
    q, k, v = tensors(48, b=3, h=4, hk=2)
    call = {"rotary": PLAIN, "extension": extension, "length": 48}
    whole = attend(q, k, v, **call)
    at = torch.tensor([3, 17, 29])
    for t in (1, 1, 2, 1, 9, 3):
        rows = at[:, None] + torch.arange(t)
        new = torch.stack([q[row, :, columns] for row, columns in enumerate(rows)])
        unfilled = torch.arange(48) >= (at + t)[:, None, None, None].squeeze(-1)
        hidden = unfilled[..., None]
        got = attend(new, k.masked_fill(hidden, 1e5), v.masked_fill(hidden, 1e5), **call, offset=at)
        want = torch.stack([whole[row, :, columns] for row, columns in enumerate(rows)])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        at = at + t


def _decoder(extension: Any) -> Decoder:
    config = DecoderConfig(
        vocab_size=23, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, max_length=T0,
        position=PositionOptions(base=100.0, extension=extension),
    )  # fmt: skip
    model = Decoder(config).double().eval()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            draw = torch.Generator().manual_seed(index)
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


@torch.no_grad()
@pytest.mark.parametrize("extension", EVERY, ids=repr)
def test_the_decoder_s_cache_under_every_method(extension: Any) -> None:
    model = _decoder(extension)
    ids = torch.randint(23, (2, 40), generator=torch.Generator().manual_seed(2))
    state = model.init_state(2, 40)
    start = 0
    whole = model(ids)
    for t in (21, 1, 1, 5, 12):
        logits = model.step(ids[:, start : start + t], state)
        start += t
        torch.testing.assert_close(logits, whole[:, start - 1], rtol=0, atol=1e-10)
    states = []
    for row, length in enumerate((30, 8)):
        states.append(model.init_state(1, 40))
        model.step(ids[row : row + 1, :length], states[-1])
    joined = DecoderState.join(states)
    for step in range(8):
        logits = model.step(torch.stack([ids[0, 30 + step], ids[1, 8 + step]])[:, None], joined)
        for row, length in enumerate((30, 8)):
            torch.testing.assert_close(logits[row], whole[row, length + step], rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_decoder_within_its_trained_length_is_the_plain_one_bit_for_bit() -> None:
    ids = torch.randint(23, (3, T0), generator=torch.Generator().manual_seed(2))
    for model in (_decoder(None), _decoder(None).float()):
        plain = model(ids)
        for extension in (
            *(Window(T0), ReRoPE(T0), DCA(T0, 0), PI(), NTKAware(), YaRN(), DynamicNTK(2), LogN()),
            ReRoPE(T0) | LogN() | YaRN(),
        ):
            assert torch.equal(model(ids, extension=extension), plain)
