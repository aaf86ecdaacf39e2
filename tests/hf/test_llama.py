"""Decoders as Llamas and Llamas as decoders: the same logits, and the same bits there and back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf.small import decoder
from lmlab.hf import from_llama, to_llama
from lmlab.model import CheckpointError, ConfigError
from lmlab.train import weights_sha256

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peer

EXTENSIONS: list[Any] = [
    {"method": "pi", "factor": 4.0},
    {"method": "llama3", "factor": 8.0, "low": 1.0, "high": 4.0},
    {"method": "yarn", "ramp": "index", "factor": 4.0, "fast": 32.0, "slow": 1.0, "truncate": True},
]


def llama(**options: Any) -> Any:
    shape = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **options})).eval()


def ids(v: int, t: int = 40) -> torch.Tensor:
    return torch.randint(0, v, (3, t), generator=torch.Generator().manual_seed(1))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_kv_heads": 2, "tie_embeddings": False},
        {"n_kv_heads": 1, "d_head": 6, "norm_eps": 1e-6},
        {"position": {"base": 5e5}},
        *({"position": {"extension": extension}} for extension in EXTENSIONS),
    ],
)
def test_a_decoder_as_a_llama_gives_its_logits_and_comes_back_as_it_was(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    model = decoder(vocab_size=61, **options).to(dtype)
    other = to_llama(model)
    assert other.dtype == dtype
    with torch.no_grad():
        assert close(model(ids(61)), other(ids(61)).logits)
    back = from_llama(other)
    assert back.config == model.config
    assert weights_sha256(back) == weights_sha256(model)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"num_key_value_heads": 1, "head_dim": 6},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ],
)
def test_a_llama_comes_in_and_goes_out_bit_for_bit(options: dict[str, Any]) -> None:
    model = llama(**options)
    inside = from_llama(model)
    with torch.no_grad():
        assert close(inside(ids(61)), model(ids(61)).logits)
    out = to_llama(inside)
    before, after = model.state_dict(), out.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(out(ids(61)).logits, model(ids(61)).logits)


def test_bfloat16_stays_and_another_dtype_may_be_asked_for() -> None:
    model = llama().bfloat16()
    assert from_llama(model).head.dtype == torch.bfloat16
    assert from_llama(model, dtype=torch.float32).head.dtype == torch.float32


def test_mup_is_folded_into_an_untied_head() -> None:
    model = decoder(init="mup", tie_embeddings=False)
    with torch.no_grad():
        assert close(model(ids(300)), to_llama(model)(ids(300)).logits)


def test_a_constant_scale_is_folded_into_the_queries() -> None:
    model = decoder(attention={"scale": 0.3})
    with torch.no_grad():
        assert close(model(ids(300)), to_llama(model)(ids(300)).logits)


def test_nothing_is_shared_and_nothing_is_drawn() -> None:
    model = decoder()
    state = torch.get_rng_state()
    other = to_llama(model)
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        other.model.norm.weight.zero_()
    assert bool(model.norm.weight.all())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"init": "mup"}, "tie_embeddings"),
        ({"mixer": ("attention", "vq")}, "mixer"),
        ({"attention": {"qk_norm": True}}, "attention.qk_norm"),
        ({"attention": {"window": 8}}, "attention.window"),
        ({"attention": {"scale": "log-n"}}, "attention.scale"),
        ({"position": {"kind": "alibi"}}, "position.kind"),
        ({"position": {"dim": 4}}, "position.dim"),
        ({"position": {"key_norm": True}}, "position.key_norm"),
        ({"position": {"extension": {"method": "rerope", "window": 8}}}, "position.extension"),
        ({"hybrid": "hwfa"}, "hybrid"),
    ],
)
def test_what_llama_has_not_is_named(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match="in a model that becomes a Llama") as caught:
        to_llama(decoder(**options))
    assert caught.value.key == key


@pytest.mark.bad_input
def test_what_a_decoder_has_not_is_named(tmp_path: Path) -> None:
    for options in ({"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}):
        (key,) = options
        with pytest.raises(ConfigError, match=f"'{key}' must be"):
            from_llama(llama(**options))
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ConfigError, match="rope_parameters"):
        from_llama(llama(rope_parameters=dynamic))
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        from_llama(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no safetensors"):
        from_llama(tmp_path)
