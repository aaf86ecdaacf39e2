"""Decoders as Llamas and back: the same function, other names for the matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lmlab.model import CheckpointError, ConfigError, Decoder, DecoderConfig, PositionOptions
from lmlab.model.attention import attention_scale_of

# lmlab's name in a layer -> Llama's; those with several are split along the rows.
_LAYER = {
    "mixer_norm.weight": ("input_layernorm.weight",),
    "mixer.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "mixer.out.weight": ("self_attn.o_proj.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.down.weight": ("mlp.down_proj.weight",),
}
_AROUND = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}


def to_llama(model: Decoder) -> LlamaForCausalLM:
    """The Llama that computes what `model` computes, with weights of its own, in the same dtype.

    A constant scale other than 1/sqrt(e) goes into the query rows, and the factor of "mup" into the head, which
    must be untied. Raises ConfigError, which names it, for what Llama hasn't: other mixers, QK norm, windows,
    ALiBi, other extensions than PI, Llama3 and YaRN (ramp "index").
    """
    config, weights = model.config, model.state_dict()
    _check(config)
    sizes = [config.n_heads * config.head_width, *[config.kv_heads * config.head_width] * 2]
    fold = float(attention_scale_of(config)) * math.sqrt(config.head_width)
    made: dict[str, Tensor] = {theirs: weights[ours] for ours, theirs in _AROUND.items()}
    for layer in range(config.n_layers):
        for ours, theirs in _LAYER.items():
            whole = weights[f"layers.{layer}.{ours}"]
            parts = list(whole.split(sizes)) if len(theirs) == 3 else list(whole.chunk(len(theirs)))
            if len(theirs) == 3 and fold != 1.0:
                parts[0] = parts[0] * fold
            made |= {f"model.layers.{layer}.{name}": part for name, part in zip(theirs, parts, strict=True)}
    head = weights["embedding.weight" if config.tie_embeddings else "output.weight"]
    made["lm_head.weight"] = head if config.output_scale == 1.0 else head * config.output_scale
    llama = _empty_llama(llama_config(config), model.head.dtype)
    llama.load_state_dict({name: tensor.clone() for name, tensor in made.items()})
    return llama.to(model.head.device).train(model.training)


def from_llama(model_or_path: LlamaForCausalLM | str | Path, *, dtype: torch.dtype | None = None) -> Decoder:
    """The Decoder that computes what a Llama computes. A path is a directory with config.json and safetensors;
    nothing is downloaded. dtype None: as it is. Raises ConfigError for what a Decoder hasn't (biases, other
    activations), CheckpointError for files that can't be used."""
    llama = model_or_path if isinstance(model_or_path, LlamaForCausalLM) else _read(Path(model_or_path))
    config = decoder_config(llama.config)
    theirs = llama.state_dict()
    weights = {ours: theirs[name] for ours, name in _AROUND.items()}
    for layer in range(config.n_layers):
        for ours, names in _LAYER.items():
            weights[f"layers.{layer}.{ours}"] = torch.cat(
                [theirs[f"model.layers.{layer}.{name}"] for name in names]
            )
    if not config.tie_embeddings:
        weights["output.weight"] = theirs["lm_head.weight"]
    model = Decoder(config).to(device=llama.device, dtype=llama.dtype if dtype is None else dtype)
    model.load_state_dict(weights)
    return model.train(llama.training)


def llama_config(config: DecoderConfig) -> LlamaConfig:
    """The configuration of `to_llama`'s model."""
    rope: dict[str, Any] = {"rope_theta": config.position.base, "rope_type": "default"} | _rope_of(config)
    factor = rope.get("factor", 1.0)
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.ff_width,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_width,
        max_position_embeddings=int(config.max_length * factor),
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tie_embeddings,
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
    )


def decoder_config(config: LlamaConfig) -> DecoderConfig:
    """The configuration of `from_llama`'s model; ConfigError for what a Decoder hasn't."""
    for name, accepted in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if (value := getattr(config, name, accepted)) != accepted:
            raise ConfigError(name, f"must be {accepted!r} in a Llama that becomes a Decoder, got {value!r}")
    rope = dict(config.rope_parameters)
    extension, trained = _extension_of(rope, config.max_position_embeddings)
    whole = DecoderConfig(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=config.head_dim,
        d_ff=config.intermediate_size,
        max_length=trained,
        position=PositionOptions(base=float(rope.get("rope_theta", 1e4)), extension=extension),
        tie_embeddings=config.tie_word_embeddings,
        norm_eps=config.rms_norm_eps,
    )
    # A decoder that became a Llama comes back as it was written: what the defaults give is left out.
    return replace(
        whole,
        n_kv_heads=None if whole.kv_heads == whole.n_heads else whole.kv_heads,
        d_head=None if whole.head_width * whole.n_heads == whole.d_model else whole.head_width,
        d_ff=None if replace(whole, d_ff=None).ff_width == whole.ff_width else whole.ff_width,
    )


def _check(config: DecoderConfig) -> None:
    others = sorted({name for name in config.layer_mixers if name != "attention"})
    position, rule = config.position, config.attention.scale
    wrong = [
        ("mixer", "attention in every layer", others, bool(others)),
        ("hybrid", '"none"', config.hybrid, config.hybrid != "none"),
        ("attention.qk_norm", "false", True, config.attention.qk_norm),
        ("attention.window", "left out", config.attention.window, config.attention.window is not None),
        ("attention.scale", "a constant", rule, not isinstance(attention_scale_of(config), float)),
        ("position.kind", '"rope"', position.kind, position.kind != "rope"),
        (
            "position.dim",
            f"the head's width {config.head_width}",
            position.dim,
            position.dim not in (None, config.head_width),
        ),
        ("position.key_norm", "false", True, position.key_norm),
        ("position.cosa", "false", True, position.cosa),
        (
            "tie_embeddings",
            'false when init = "mup"',
            True,
            config.tie_embeddings and config.output_scale != 1.0,
        ),
    ]
    for key, accepted, value, bad in wrong:
        if bad:
            raise ConfigError(key, f"must be {accepted} in a model that becomes a Llama, got {value!r}")


def _rope_of(config: DecoderConfig) -> dict[str, Any]:
    """Llama's rope_parameters for the configured extension."""
    extension = config.to_dict()["position"]["extension"]
    tables = [extension] if isinstance(extension, dict) else extension or []
    if not tables:
        return {}
    table = tables[0] if len(tables) == 1 else {}
    method = table.get("method")
    original = {"original_max_position_embeddings": config.max_length}
    if method == "pi" and table.get("factor") is not None:
        return {"rope_type": "linear", "factor": table["factor"]}
    if method == "llama3":
        return original | {
            "rope_type": "llama3",
            "factor": table.get("factor", 8.0),
            "low_freq_factor": table.get("low", 1.0),
            "high_freq_factor": table.get("high", 4.0),
        }
    if method == "yarn" and table.get("factor") is not None and table.get("ramp") == "index":
        attention = table.get("attention_factor")
        return original | {
            "rope_type": "yarn",
            "factor": table["factor"],
            "beta_fast": table.get("fast") or min(32.0, max(2.0, config.max_length / 64)),
            "beta_slow": table.get("slow", 1.0),
            "truncate": table.get("truncate", True),
            **({} if attention is None else {"attention_factor": attention}),
        }
    raise ConfigError(
        "position.extension",
        'must be left out, PI or YaRN (ramp = "index") with a factor, or Llama3, in a model that becomes a '
        f"Llama, got {extension!r}",
    )


def _extension_of(rope: Mapping[str, Any], max_positions: int) -> tuple[dict[str, Any] | None, int]:
    """(the extension, the length trained on before it) of Llama's rope_parameters."""
    kind = rope.get("rope_type", "default")
    original = int(rope.get("original_max_position_embeddings") or max_positions)
    if kind == "default":
        return None, max_positions
    if kind == "linear":
        return {"method": "pi", "factor": float(rope["factor"])}, max(1, int(max_positions / rope["factor"]))
    if kind == "llama3":
        return {
            "method": "llama3",
            "factor": float(rope["factor"]),
            "low": float(rope["low_freq_factor"]),
            "high": float(rope["high_freq_factor"]),
        }, original
    if kind == "yarn" and "mscale" not in rope:
        return {
            "method": "yarn",
            "ramp": "index",
            "factor": float(rope["factor"]),
            "fast": float(rope.get("beta_fast") or 32.0),
            "slow": float(rope.get("beta_slow") or 1.0),
            "truncate": bool(rope.get("truncate", True)),
            **({"attention_factor": rope["attention_factor"]} if rope.get("attention_factor") else {}),
        }, original
    raise ConfigError(
        "rope_parameters",
        f'must be of type "default", "linear", "llama3" or "yarn" (without mscale), got {dict(rope)!r}',
    )


def _empty_llama(config: LlamaConfig, dtype: torch.dtype) -> LlamaForCausalLM:
    """A Llama whose weights are about to be replaced; nothing is drawn from torch's generator."""
    with torch.random.fork_rng(devices=[]):
        return LlamaForCausalLM._from_config(config, dtype=dtype)


def _read(path: Path) -> LlamaForCausalLM:
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json; expected a directory with a Llama checkpoint")
    if not list(path.glob("*.safetensors")):
        raise CheckpointError(
            f"{path} holds no safetensors, and only they are read; others can run code when opened"
        )
    return LlamaForCausalLM.from_pretrained(path, dtype="auto", use_safetensors=True, local_files_only=True)
