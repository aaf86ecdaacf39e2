"""The mixer "attention": causal softmax attention with grouped heads."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab._linear import Linear
from lmlab.model.config import DecoderConfig
from lmlab.model.errors import ConfigError
from lmlab.model.kernels import LONGEST, available, causal_attention
from lmlab.model.ops import accumulation_dtype, add_norm, rotate_half_split
from lmlab.model.positions import LayerPosition, RotaryTable
from lmlab.model.state import AttentionState

CONFIGURED: Any = object()
"""Stands for "the extension of the configuration", which None can't: None is plain attention."""


class Attention(nn.Module):
    """x [b t d] -> q, k, v by one projection -> (QK norm, RoPE) -> causal attention -> output projection.

    Attention is `lmlab.attention.attend`; plain heads (RoPE or no positions, a constant scale, no window) keep
    rotated keys in their state.
    """

    def __init__(self, config: DecoderConfig, layer: int, plan: LayerPosition, table: RotaryTable) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = config.n_heads, config.kv_heads, config.head_width
        self.eps = config.norm_eps
        self.plan = plan
        self.table = table
        self.qkv = Linear(config.d_model, (self.heads + 2 * self.kv_heads) * self.width, bias=False)
        self.out = Linear(self.heads * self.width, config.d_model, bias=False)
        self.q_gain = nn.Parameter(torch.ones(self.width)) if config.attention.qk_norm else None
        self.k_gain = nn.Parameter(torch.ones(self.width)) if config.attention.qk_norm else None
        self.scale = attention_scale_of(config)
        self.trained = trained_methods(config, plan)
        self.max_length = config.max_length
        self.extension = self._composed(config.position.extension)
        self.rotary = _rotary(config) if plan.rotary else None

    @property
    def plain(self) -> bool:
        """Whether the configured layer is RoPE (or nothing) and a constant scale: no `attend` needed."""
        return self.extension is None and isinstance(self.scale, float)

    def forward(
        self, x: Float[Tensor, "b t d"], state: AttentionState | None = None, *, extension: Any = CONFIGURED
    ) -> tuple[Float[Tensor, "b t d"], AttentionState | None, None]:
        b, t, _ = x.shape
        qkv = self.qkv(x).view(b, t, self.heads + 2 * self.kv_heads, self.width)
        composed = self.extension if extension is CONFIGURED else self._composed(extension)
        plain = composed is None and isinstance(self.scale, float)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        if self.q_gain is not None and self.k_gain is not None:
            q = add_norm(q, None, self.q_gain, self.eps, q.dtype)[1]
            k = add_norm(k, None, self.k_gain, self.eps, k.dtype)[1]
        # not in evaluation: there a method that changes nothing at this length gives the plain bits
        if plain and state is None and torch.is_grad_enabled() and t <= LONGEST and available(qkv):
            whole = qkv if self.q_gain is None else torch.cat((q, k, v), dim=2)
            return self.out(self._fused(whole).view(b, t, -1)), None, None
        if plain:
            mixed = self._plain(q, k, v, state)
        else:
            mixed = self._extended(q, k, v, state, composed)
        return self.out(mixed.transpose(1, 2).reshape(b, t, -1)), state, None

    def _fused(self, qkv: Float[Tensor, "b t heads e"]) -> Float[Tensor, "b t h e"]:
        """Rotation and attention in one native kernel."""
        t, wide = qkv.shape[1], accumulation_dtype(qkv.dtype)
        if self.plan.rotary:
            cosines, sines = self.table(t, wide, qkv.device)
        else:
            cosines = sines = torch.empty(t, 0, dtype=wide)
        return causal_attention(qkv, cosines, sines, kv_heads=self.kv_heads, scale=self.scale)

    def _plain(
        self,
        q: Float[Tensor, "b t h e"],
        k: Float[Tensor, "b t g e"],
        v: Float[Tensor, "b t g e"],
        state: AttentionState | None,
    ) -> Float[Tensor, "b h t e"]:
        t = q.shape[1]
        if self.plan.rotary:
            start = 0 if state is None else state.position
            cos, sin = self.table(start + t, accumulation_dtype(q.dtype), q.device)
            if state is None or state.offsets is None:
                cos, sin = cos[start:], sin[start:]
            else:
                where = state.offsets[:, None] + torch.arange(t, device=q.device)
                cos, sin = cos[where], sin[where]
            q, k = rotate_half_split(q, cos, sin), rotate_half_split(k, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        grouped = self.kv_heads != self.heads
        if state is None or state.position == 0:
            if state is not None:
                state.write(k, v)
            from lmlab.attention import attend

            mixed: Tensor = attend(q, k, v, scale=self.scale)
            return mixed
        state.write(k, v)
        end = state.position
        keys, values = state.keys[:, :, :end], state.values[:, :, :end]
        positions = torch.arange(end, device=q.device)
        if state.offsets is not None:
            last = state.offsets[:, None] - t + torch.arange(t, device=q.device)
            mask = positions <= last[:, None, :, None]
        elif t > 1:
            mask = positions <= positions[end - t :, None]
        else:
            mask = None
        return F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, scale=self.scale, enable_gqa=grouped
        )

    def _extended(
        self,
        q: Float[Tensor, "b t h e"],
        k: Float[Tensor, "b t g e"],
        v: Float[Tensor, "b t g e"],
        state: AttentionState | None,
        extension: Any,
    ) -> Float[Tensor, "b h t e"]:
        from lmlab.attention import attend

        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        choice: dict[str, Any] = {"rotary": self.rotary, "extension": extension, "scale": self.scale}
        if state is not None:
            offset = state.position if state.offsets is None else state.offsets
            state.write(k, v)
            k, v = state.keys[:, :, : state.position], state.values[:, :, : state.position]
            length = None if state.length is None else max(state.length, state.position)
            choice |= {"offset": offset, "length": length}
        mixed: Tensor = attend(q, k, v, **choice)
        return mixed

    def _composed(self, extension: Any) -> Any:
        """The methods that the model is trained with, and `extension` where this layer takes one."""
        return compose(self.trained, extension, self.plan, self.max_length)

    def init_state(self, batch_size: int, max_length: int | None = None) -> AttentionState:
        capacity = self.max_length if max_length is None else max_length
        weight = self.qkv.weight
        shape = (batch_size, self.kv_heads, capacity, self.width)
        return AttentionState(weight.new_zeros(shape), weight.new_zeros(shape), max_length)

    def flops_per_token(self, length: int) -> int:
        matrices = 2 * (self.qkv.weight.numel() + self.out.weight.numel())
        seen = length if self.plan.window is None else min(length, 2 * self.plan.window)
        return matrices + 2 * seen * self.heads * self.width


def attention_scale_of(config: DecoderConfig) -> Any:
    """The multiplier of q·k: a float, or a scale rule of `lmlab.attention`."""
    scale, width = config.attention.scale, config.head_width
    if scale is None:
        if config.position.key_norm or config.position.cosa:
            return 1.0
        return 1.0 / width if config.init == "mup" else 1.0 / math.sqrt(width)
    if isinstance(scale, float):
        return scale
    table = dict(scale) if isinstance(scale, dict) else {"rule": scale}
    return _scale_rule(table.pop("rule"), table, config)


def _scale_rule(name: str, arguments: dict[str, Any], config: DecoderConfig) -> Any:
    from lmlab import attention as rules

    classes: dict[str, Any] = {
        "inv-sqrt": rules.InverseSqrt,
        "mup": rules.MuP,
        "log-n": rules.EntropyInvariant,
        "gradient": rules.GradientScale,
        "learned": rules.LearnedScale,
        "ssmax": rules.LearnedScale,
    }
    if name == "log-n":
        arguments.setdefault("train_length", config.max_length)
    if name in ("learned", "ssmax"):
        arguments.setdefault("heads", config.n_heads)
    if name == "ssmax":
        train_length = arguments.pop("train_length", config.max_length)
        arguments.setdefault("initial", rules.EntropyInvariant(train_length))
    try:
        return classes[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError("attention.scale", f"rule {name!r}: {error}") from None


def _rotary(config: DecoderConfig) -> Any:
    from lmlab.rope import Rotary

    dim = config.head_width if config.position.dim is None else config.position.dim
    return Rotary(dim, base=config.position.base, train_length=config.max_length)


def trained_methods(config: DecoderConfig, plan: LayerPosition) -> tuple[Any, ...]:
    """The methods of `lmlab.rope` that are part of the trained layer, whatever the extension."""
    position = config.position
    if plan.window is None and position.kind != "alibi" and not position.key_norm and not position.cosa:
        return ()
    from lmlab import rope

    methods: list[Any] = []
    if plan.window is not None:
        methods.append(rope.Window(plan.window))
    if position.kind == "alibi":
        methods.append(rope.ALiBi())
    if position.key_norm:
        methods.append(rope.KeyNorm())
    if position.cosa:
        methods.append(rope.CosA())
    return tuple(methods)


def read_extension(extension: Any) -> Any:
    """The Extension that a configuration or a caller names: methods of `lmlab.rope`, or a recipe's tables."""
    from lmlab.rope import as_extension, extension_from_table

    tables = extension if isinstance(extension, (list, tuple)) else [extension]
    if all(isinstance(table, dict) for table in tables):
        return extension_from_table(extension)
    return as_extension(extension)


def compose(trained: tuple[Any, ...], extension: Any, plan: LayerPosition, train_length: int) -> Any:
    """An Extension for `attend`, or None when nothing is left to do.

    A layer with a window of its own keeps it and takes no extension; a layer without rotary takes only the
    methods that act on logits.
    """
    if extension is None or plan.window is not None:
        wanted: tuple[Any, ...] = ()
    else:
        chosen = read_extension(extension)
        wanted = (chosen if plan.rotary else chosen.without_rotary(train_length)).methods
    if not trained and not wanted:
        return None
    from lmlab.rope import as_extension

    return as_extension((*trained, *wanted))
