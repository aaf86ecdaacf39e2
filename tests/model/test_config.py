"""Configurations: plain values there and back, and errors that name the key."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.model import AttentionOptions, ConfigError, Decoder, DecoderConfig, PositionOptions

VALUES = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(1, 10**6),
        "d_model": st.sampled_from([8, 64]),
        "n_layers": st.integers(1, 9),
        "n_heads": st.sampled_from([1, 2, 4]),
        "n_kv_heads": st.sampled_from([None, 1]),
        "d_head": st.sampled_from([None, 2, 10]),
        "d_ff": st.sampled_from([None, 7]),
        "mixer": st.sampled_from(["attention", ["recurrent", "attention"], ["vq"]]),
        "attention": st.fixed_dictionaries(
            {
                "qk_norm": st.booleans(),
                "scale": st.sampled_from([None, 0.5, "log-n", {"rule": "gradient", "share": 0.9}]),
                "window": st.sampled_from([None, 5]),
            }
        ),
        "position": st.fixed_dictionaries(
            {
                "kind": st.sampled_from(["rope", "nope", "alibi"]),
                "dim": st.sampled_from([None, 2]),
                "extension": st.sampled_from([None, {"method": "rerope", "window": 3}, [{"method": "logn"}]]),
            }
        ),
        "tie_embeddings": st.booleans(),
        "init": st.sampled_from(["scaled", "mup"]),
    }
)


@given(VALUES)
def test_plain_values_there_and_back(values: dict[str, Any]) -> None:
    config = DecoderConfig.from_dict(values)
    assert DecoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict().items() >= {key: values[key] for key in ("d_model", "mixer", "init")}.items()


def test_an_extension_object_is_written_as_its_table() -> None:
    from lmlab.rope import LogN, ReRoPE

    config = DecoderConfig(10, position=PositionOptions(extension=ReRoPE(7) | LogN()))
    tables = config.to_dict()["position"]["extension"]
    assert [table["method"] for table in tables] == ["rerope", "logn"]
    json.dumps(tables)
    assert Decoder(DecoderConfig.from_dict(config.to_dict())).config.to_dict() == config.to_dict()


def test_what_follows_from_the_given_values() -> None:
    config = DecoderConfig(10, d_model=192, n_heads=6, mixer=("recurrent", "attention"), n_layers=5)
    assert (config.kv_heads, config.head_width, config.ff_width) == (6, 32, 512)
    assert config.layer_mixers == ("recurrent", "attention", "recurrent", "attention", "recurrent")
    assert DecoderConfig(10, d_model=128, n_heads=4).ff_width == 384
    assert DecoderConfig(10, d_model=256, n_heads=4).ff_width == 704


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"vocab_size": 9, "n_layer": 3}, "n_layer", "unknown key 'n_layer'. Did you mean 'n_layers'?"),
    (
        {"vocab_size": 9, "attention": {"qknorm": True}},
        "attention.qknorm",
        "Did you mean 'attention.qk_norm'?",
    ),
    ({"vocab_size": 9, "vq": {"code": 2}}, "vq.code", "Did you mean 'vq.codes'?"),
    ({"vocab_size": 9, "zzz": 3}, "zzz", "Known: vocab_size, d_model"),
    ({"vocab_size": "many"}, "vocab_size", "must be an integer, got 'many'"),
    ({"vocab_size": True}, "vocab_size", "must be an integer, got True"),
    ({"vocab_size": 0}, "vocab_size", "must be an integer >= 1, got 0"),
    ({"vocab_size": 9, "n_kv_heads": 4}, "n_kv_heads", "a divisor of n_heads = 6, got 4"),
    ({"vocab_size": 9, "n_heads": 5}, "n_heads", "a divisor of d_model = 192"),
    ({"vocab_size": 9, "d_head": 3}, "d_head", "must be even, got 3"),
    ({"vocab_size": 9, "d_model": 6, "n_heads": 2}, "n_heads", "d_model // n_heads is even"),
    ({"vocab_size": 9, "init": "best"}, "init", "one of 'scaled', 'mup', got 'best'"),
    ({"vocab_size": 9, "norm_eps": float("nan")}, "norm_eps", "must be a finite number, got nan"),
    ({"vocab_size": 9, "norm_eps": -1.0}, "norm_eps", "a number >= 0, got -1.0"),
    ({"vocab_size": 9, "mixer": []}, "mixer", "a name or a list of names"),
    ({"vocab_size": 9, "attention": {"scale": "big"}}, "attention.scale", "a number, a rule (inv-sqrt, mup,"),
    ({"vocab_size": 9, "attention": {"window": 0}}, "attention.window", "an integer >= 1 or left out, got 0"),
    ({"vocab_size": 9, "position": {"dim": 3}}, "position.dim", "an even integer >= 2, got 3"),
    ({"vocab_size": 9, "position": {"dim": 64}}, "position.dim", "at most the head's width 32, got 64"),
    ({"vocab_size": 9, "hybrid": "hwfa", "attention": {"window": 3}}, "attention.window", 'hybrid = "hwfa"'),
    (
        {"vocab_size": 9, "hybrid": "hwfa", "position": {"kind": "nope"}},
        "hybrid",
        '"none" unless position.kind',
    ),
    ({"vocab_size": 9, "vq": {"codes": 0}}, "vq.codes", "codes must be >= 1, got 0"),
    ({}, "vocab_size", "must be given"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("values", "key", "text"), WRONG, ids=[f"{key}: {text}" for _, key, text in WRONG])
def test_wrong_values_are_refused_by_key(values: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DecoderConfig.from_dict(values)
    assert caught.value.key == key
    assert text in str(caught.value)


@pytest.mark.bad_input
def test_an_unknown_mixer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"attention, recurrent, vq\), got 'conv'.*mixers=\{'conv': factory\}"
    ):
        Decoder(DecoderConfig(9, d_model=8, n_heads=2, mixer="conv"))


@pytest.mark.bad_input
def test_a_scale_rule_with_wrong_arguments_is_refused() -> None:
    options = AttentionOptions(scale={"rule": "log-n", "wavelength": 3})
    with pytest.raises(ConfigError, match=r"'attention.scale' rule 'log-n': .*wavelength"):
        Decoder(DecoderConfig(9, d_model=8, n_heads=2, attention=options))
