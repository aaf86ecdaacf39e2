"""One new token for every row through all layers, in one native call: what generation spends its time on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmlab.model import kernels
from lmlab.model.attention import Attention
from lmlab.model.state import DecoderState

if TYPE_CHECKING:
    from lmlab.model.decoder import Decoder

MOST_ROWS = 16
"""Beyond these the matrix products of torch are faster."""


def possible(model: Decoder, ids: Tensor, state: DecoderState) -> bool:
    """Whether `decode` can take this step: one token a row, no gradient, plain attention in every layer, and
    weights of one type on the CPU."""
    b, t = ids.shape
    if t != 1 or not 0 < b <= MOST_ROWS or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    mixers: list[Any] = [block.mixer for block in model.blocks]
    dtype = model.head.dtype
    return (
        dtype in (torch.float32, torch.float64)
        and kernels.available(model.head)
        and all(
            isinstance(mixer, Attention)
            and mixer.plain
            and mixer.qkv.weight.dtype == dtype
            and (mixer.scale, mixer.plan.rotary) == (mixers[0].scale, mixers[0].plan.rotary)
            for mixer in mixers
        )
    )


def decode(model: Decoder, ids: Int[Tensor, "b 1"], state: DecoderState) -> Float[Tensor, "b v"]:
    """Logits of the new tokens; `state` moves in place by one."""
    first: Any = model.blocks[0].mixer
    caches = state.layers
    positions = caches[0].row_offsets()
    x = model.embedding(ids[:, 0])
    if first.plan.rotary:
        cosines, sines = (table[positions] for table in first.table(state.position + 1, x.dtype, x.device))
    else:
        cosines = sines = x.new_empty(len(x), 0)
    layers = []
    for block, cache in zip(model.blocks, caches, strict=True):
        cache.reserve(cache.position + 1)
        mixer: Any = block.mixer
        weights = (
            block.mixer_norm.weight,
            mixer.qkv.weight,
            mixer.q_gain,
            mixer.k_gain,
            mixer.out.weight,
            block.mlp_norm.weight,
            block.mlp.gate_up.weight,
            block.mlp.down.weight,
        )
        layers.append((*(None if w is None else w.detach() for w in weights), cache.keys, cache.values))
    logits: Tensor = x.new_empty(len(x), model.config.vocab_size)
    kernels.native().decode(
        x,
        layers,
        model.norm.weight.detach(),
        model.head.detach(),
        cosines,
        sines,
        positions,
        logits,
        model.config.norm_eps,
        first.scale,
        model.config.output_scale,
    )
    for cache in caches:
        cache.advance(1)
    state.position += 1
    return logits
