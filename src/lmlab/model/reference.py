"""The decoder as its formula reads, in float64, by loops over layers, heads and positions: the oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmlab.model.config import DecoderConfig
from lmlab.model.positions import layer_positions


def decoder_logits(
    weights: Mapping[str, Float[Tensor, "..."]], config: DecoderConfig, ids: Int[Tensor, "b t"]
) -> Float[Tensor, "b t v"]:
    """Logits of a decoder whose layers are all plain "attention" (RoPE or none, windows, QK norm)."""
    embedding = weights["embedding.weight"]
    head = embedding if config.tie_embeddings else weights["output.weight"]
    rows = []
    for row in ids:
        x = embedding[row]
        for layer, plan in enumerate(layer_positions(config)):
            assert plan is not None
            w = {key.removeprefix(f"layers.{layer}."): value for key, value in weights.items()}
            a = x + _attention(_rms(x, w["mixer_norm.weight"], config), w, config, plan.window, plan.rotary)
            y = _rms(a, w["mlp_norm.weight"], config) @ w["mlp.gate_up.weight"].T
            gate, up = y[:, : config.ff_width], y[:, config.ff_width :]
            x = a + (gate / (1 + torch.exp(-gate)) * up) @ w["mlp.down.weight"].T
        rows.append(config.output_scale * _rms(x, weights["norm.weight"], config) @ head.T)
    return torch.stack(rows)


def _rms(x: Tensor, gain: Tensor, config: DecoderConfig) -> Tensor:
    return gain * x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.norm_eps)


def _rotate(x: Tensor, position: int, config: DecoderConfig) -> Tensor:
    """x [e] at one position: pair (m, m + D/2) turns by position · base^(-2m/D)."""
    rotated = config.position.dim or config.head_width
    half = rotated // 2
    out = x.clone()
    for m in range(half):
        angle = position * config.position.base ** (-2 * m / rotated)
        cos, sin = math.cos(angle), math.sin(angle)
        out[m] = x[m] * cos - x[m + half] * sin
        out[m + half] = x[m + half] * cos + x[m] * sin
    return out


def _attention(
    x: Tensor, w: Mapping[str, Tensor], config: DecoderConfig, window: int | None, rotary: bool
) -> Tensor:
    h, g, e = config.n_heads, config.kv_heads, config.head_width
    scale = 1 / e if config.init == "mup" else 1 / math.sqrt(e)
    qkv = (x @ w["mixer.qkv.weight"].T).view(len(x), h + 2 * g, e)
    heads = []
    for head in range(h):
        q, k, v = qkv[:, head], qkv[:, h + head * g // h], qkv[:, h + g + head * g // h]
        if config.attention.qk_norm:
            q, k = _rms(q, w["mixer.q_gain"], config), _rms(k, w["mixer.k_gain"], config)
        if rotary:
            q = torch.stack([_rotate(q[i], i, config) for i in range(len(x))])
            k = torch.stack([_rotate(k[i], i, config) for i in range(len(x))])
        out = []
        for i in range(len(x)):
            first = 0 if window is None else max(0, i - window + 1)
            p = torch.softmax(scale * (k[first : i + 1] @ q[i]), dim=0)
            out.append(p @ v[first : i + 1])
        heads.append(torch.stack(out))
    return torch.cat(heads, dim=-1) @ w["mixer.out.weight"].T
