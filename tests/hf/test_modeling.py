"""A decoder as a model of transformers: its logits, padding, the cache, generation, the loss."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf.small import decoder
from lmlab.hf import LMLabConfig, LMLabForCausalLM, as_model, extend, rotary_of
from lmlab.losses import LinearLoss, causal_lm_loss
from lmlab.model import ConfigError, Decoder, generate
from lmlab.rope import ReRoPE

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peer

KINDS: list[dict[str, Any]] = [
    {},
    {"tie_embeddings": False, "n_kv_heads": 2, "init": "mup"},
    {"mixer": ("vq", "attention"), "vq": {"codes": 8, "window": 4}},
    {"position": {"extension": {"method": "rerope", "window": 8}}},
]
IDS = ["attention", "untied mup", "vq hybrid", "rerope"]


def wrapped(model: Decoder) -> LMLabForCausalLM:
    """The same weights as a model of transformers."""
    made = LMLabForCausalLM(LMLabConfig(model.config)).eval().to(model.head.dtype)
    made.model.decoder.load_state_dict(model.state_dict())
    return made


def rows(t: int = 10, b: int = 4) -> Tensor:
    return torch.randint(1, 300, (b, t), generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=KINDS, ids=IDS)
def pair(request: pytest.FixtureRequest) -> tuple[Decoder, LMLabForCausalLM]:
    model = decoder(**request.param).double()
    return model, wrapped(model)


def test_logits_are_the_decoders_bit_for_bit(pair: tuple[Decoder, LMLabForCausalLM]) -> None:
    model, other = pair
    with torch.no_grad():
        assert torch.equal(other(rows()).logits, model(rows()))
        assert torch.equal(other(rows(), logits_to_keep=2).logits, model(rows())[:, -2:])
        assert torch.equal(other(rows(), return_dict=False)[0], model(rows()))


@pytest.mark.bad_input
def test_extend_points_to_position_extension(tmp_path: Path) -> None:
    model = decoder()
    other = wrapped(model)
    for call in (extend, rotary_of, as_model):
        with pytest.raises(ValueError, match=r"set position\.extension before .*config\.lmlab\["):
            call(other)
    other.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.lmlab["position"]["extension"] = {"method": "rerope", "window": 8}
    with torch.no_grad():
        extended = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, config=config)(rows(40))
        by_call = other.model.decoder(rows(40), extension=ReRoPE(window=8))
    assert torch.equal(extended.logits, by_call)
    assert not torch.equal(by_call, model(rows(40)))


def test_any_split_with_a_cache_gives_the_same(pair: tuple[Decoder, LMLabForCausalLM]) -> None:
    model, other = pair
    with torch.no_grad():
        first = other(rows()[:, :6], use_cache=True)
        second = other(rows()[:, 6:9], cache=first[other_cache(first)])
        third = other(rows()[:, 9:], past_key_values=second[other_cache(second)], use_cache=True)
        split = torch.cat([first.logits, second.logits, third.logits], dim=1)
        torch.testing.assert_close(split, model(rows()), rtol=0, atol=1e-10)


def other_cache(out: Mapping[str, Any]) -> str:
    return "cache" if "cache" in out else "past_key_values"


def test_left_padding_never_enters_the_model(pair: tuple[Decoder, LMLabForCausalLM]) -> None:
    model, other = pair
    pads = [0, 3, 3, 7]
    mask = torch.ones(4, 10, dtype=torch.int64)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    with torch.no_grad():
        found = other(rows(), attention_mask=mask).logits
        for row, pad in enumerate(pads):
            alone = model(rows()[row : row + 1, pad:])
            torch.testing.assert_close(found[row, pad:], alone[0], rtol=0, atol=1e-10)


def test_generation_in_a_padded_batch_is_that_of_each_row_alone(
    pair: tuple[Decoder, LMLabForCausalLM],
) -> None:
    model, other = pair
    pads = [2, 0, 5, 2]
    mask = torch.ones(4, 10, dtype=torch.int64)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    made = other.generate(
        rows(), attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    prompts = [rows()[row, pad:].tolist() for row, pad in enumerate(pads)]
    for row, one in enumerate(generate(model, prompts, max_new_tokens=8, temperature=0)):
        assert made[row, 10:].tolist() == one.ids


def test_beams_follow_their_cache(pair: tuple[Decoder, LMLabForCausalLM]) -> None:
    _, other = pair
    options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    mask = torch.ones(2, 10, dtype=torch.int64)
    mask[0, :4] = 0
    given = {"attention_mask": mask, "pad_token_id": 0}
    cached = other.generate(rows(b=2), **given, **options)
    assert torch.equal(cached, other.generate(rows(b=2), **given, **options, use_cache=False))


def test_the_loss_is_the_shifted_cross_entropy_and_its_fused_form_agrees() -> None:
    model = decoder(mixer=("attention", "vq"), vq={"codes": 8, "window": 4}).double()
    other = wrapped(model)
    labels = rows().clone()
    labels[0, :5] = -100
    loss = other(rows(), labels=labels).loss
    hidden = model.hidden(rows())
    logits = torch.nn.functional.linear(hidden.h, model.head)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    # transformers computes the loss in float32
    torch.testing.assert_close(loss.double(), expected + hidden.aux, rtol=1e-6, atol=1e-6)
    fused = causal_lm_loss(other, {"input_ids": rows(), "labels": labels}, LinearLoss())
    torch.testing.assert_close(fused, expected, rtol=1e-10, atol=1e-10)


def test_the_vocabulary_can_grow() -> None:
    for options in ({}, {"tie_embeddings": False}):
        other = wrapped(decoder(**options))
        before = other(rows()).logits
        other.resize_token_embeddings(310)
        assert other.config.vocab_size == 310 and other.model.decoder.config.vocab_size == 310
        after = other(torch.full((1, 3), 305)).logits
        assert after.shape == (1, 3, 310)
        torch.testing.assert_close(other(rows()).logits[..., :300], before)


@pytest.mark.bad_input
def test_what_is_not_supported_is_said() -> None:
    other = wrapped(decoder())
    with pytest.raises(NotImplementedError, match="inputs_embeds isn't supported"):
        other(inputs_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(NotImplementedError, match="packed rows aren't supported"):
        other(rows(4), position_ids=torch.tensor([[0, 1, 0, 1]]))
    with pytest.raises(NotImplementedError, match=r"must be \[batch, tokens\] = \[4, 10\]"):
        other(rows(), attention_mask=torch.ones(4, 1, 10, 10))
    hole = torch.ones(4, 10)
    hole[1, 4] = 0
    with pytest.raises(ValueError, match="the tokens of a row are one piece"):
        other(rows(), attention_mask=hole)
    right = torch.ones(4, 10)
    right[1, 7:] = 0
    other(rows(), attention_mask=right)
    with pytest.raises(ValueError, match="with a cache padding goes left"):
        other(rows(), attention_mask=right, use_cache=True)
    with pytest.raises(ConfigError, match="unknown key 'd_modle'"):
        LMLabConfig({"d_modle": 3})
    with pytest.raises(ValueError, match=r"was written by Decoder\.save"):
        LMLabConfig(**decoder().config.to_dict())
