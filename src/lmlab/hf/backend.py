"""The attention function "lmlab" of extended models, and its mask function, in transformers' registries.

The model's rotary modules give cos = 1 and sin = 0, so that queries, keys and the cache are un-rotated here,
and `attend` applies positions under the layer's extension.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from lmlab.attention import attend
from lmlab.rope import Extension, LengthWarning, Rotary
from lmlab.rope.frequency import FrequencyMethod

NAME = "lmlab"
SETTING = "_lmlab_setting"  # the attribute of an attention module that holds its LayerSetting


@dataclass
class LayerSetting:
    """How one attention module attends: its rotary (None: without), its methods, and n where it is fixed."""

    rotary: Rotary | None
    extension: Extension
    length: int | None = None
    warned: bool = False


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What an attention module calls: query [b h t d], key and value [b hk T d] -> out [b t h d].

    attention_mask is what `mask` gave: padding [b T] of the keys that are filled, or None."""
    setting: LayerSetting | None = getattr(module, SETTING, None)
    if setting is None:
        raise NotImplementedError(
            f"{type(module).__name__} was not there, or was not used for text, when the model was extended: "
            "call lmlab.hf.extend(model, …) again, or lmlab.hf.restore(model)"
        )
    if dropout > 0:
        raise NotImplementedError(
            f"an extended model has no attention dropout, got {dropout}: call model.eval(), or set "
            "attention_dropout to 0"
        )
    if kwargs.get("output_attentions"):
        raise NotImplementedError("an extended model can't give attention weights: leave output_attentions")
    if attention_mask is not None:
        if attention_mask.ndim != 2:
            raise NotImplementedError(
                f"an extended model takes a padding mask [batch, tokens], got shape {tuple(attention_mask.shape)}"
            )
        key, value = key[:, :, : attention_mask.shape[1]], value[:, :, : attention_mask.shape[1]]
    _warn_of_older_states(setting, query.shape[2], key.shape[2])
    if attention_mask is None:
        out = _attend(setting, query, key, value, scaling)
    else:
        out = _attend_padded(setting, query, key, value, scaling, attention_mask)
    return out.transpose(1, 2), None


def _attend(setting: LayerSetting, q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    has_norm = any(method.kind == "norm" for method in setting.extension.methods)
    return attend(
        q,
        k,
        v,
        rotary=setting.rotary,
        extension=setting.extension,
        scale=None if has_norm else scaling,
        offset=k.shape[2] - q.shape[2],
        length=setting.length,
    )


def _attend_padded(
    setting: LayerSetting, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, mask: Tensor
) -> Tensor:
    """Rows with equal left padding run together with it cut off, so that positions start at the first token."""
    before = k.shape[2] - q.shape[2]  # keys before the first query
    out = torch.zeros_like(q)
    padding = mask.shape[1] - mask.sum(dim=1)
    first = torch.arange(mask.shape[1], device=mask.device) >= padding[:, None]
    if not torch.equal(first, mask.bool()):
        raise ValueError(
            "an extended model takes left padding only: attention_mask must be 0 … 0 1 … 1 in every row "
            '(tokenizer.padding_side = "left")'
        )
    for pad in sorted(set(padding.tolist())):
        rows = torch.nonzero(padding == pad)[:, 0]
        skip = max(0, pad - before)  # queries that are padding themselves
        if skip == q.shape[2]:
            continue
        seen = _attend(setting, q[rows, :, skip:], k[rows, :, pad:], v[rows, :, pad:], scaling)
        out[rows, :, skip:] = seen
    return out


def _warn_of_older_states(setting: LayerSetting, t: int, keys: int) -> None:
    method = setting.extension.find(FrequencyMethod)
    if method is None or not method.depends_on_length or setting.length is not None or setting.warned:
        return
    if t < keys and setting.rotary is not None and keys > setting.rotary.train_length:
        setting.warned = True
        warnings.warn(
            f"{method} moves as the cache grows, so older hidden states were computed under other angles: pass "
            "length=prompt + max_new_tokens to lmlab.hf.extend",
            LengthWarning,
            stacklevel=2,
        )


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The padding [b T] of the filled keys that a layer holds, or None: no T × T mask is ever made."""
    if use_vmap or (not allow_is_causal_skip and q_length > 1):  # one query: a static cache says so too
        raise NotImplementedError(
            "an extended model takes causal attention with left padding: packed sequences and masks of other "
            "forms are not supported"
        )
    filled = int(q_offset) + q_length - int(kv_offset)
    if filled > kv_length:
        raise NotImplementedError(
            f"the cache holds {kv_length} keys of {filled}: a static cache with a sliding window is not "
            "supported by an extended model, use the dynamic cache"
        )
    if attention_mask is None:
        return (
            None if filled == kv_length else torch.ones(batch_size, filled, dtype=torch.bool, device=device)
        )
    padding = attention_mask[:, kv_offset : kv_offset + filled].bool()
    if padding.shape[1] != filled:
        raise ValueError(
            f"attention_mask must cover all {kv_offset + filled} tokens, cached ones too, "
            f"got {attention_mask.shape[1]}"
        )
    return None if filled == kv_length and bool(padding.all()) else padding


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
