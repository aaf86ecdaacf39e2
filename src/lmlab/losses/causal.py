"""Any causal language model of transformers' make with a fused loss: its head runs on zero positions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.losses.modules import LinearLoss


@overload
def causal_lm_loss(
    model: nn.Module,
    inputs: Mapping[str, Any],
    criterion: LinearLoss,
    *,
    num_items: int | Tensor | None = ...,
    return_outputs: Literal[False] = ...,
) -> Tensor: ...
@overload
def causal_lm_loss(
    model: nn.Module,
    inputs: Mapping[str, Any],
    criterion: LinearLoss,
    *,
    num_items: int | Tensor | None = ...,
    return_outputs: Literal[True],
) -> tuple[Tensor, Any]: ...
def causal_lm_loss(
    model: nn.Module,
    inputs: Mapping[str, Any],
    criterion: LinearLoss,
    *,
    num_items: int | Tensor | None = None,
    return_outputs: bool = False,
) -> Tensor | tuple[Tensor, Any]:
    """criterion on the model's last hidden states and its head, for models of transformers' causal contract.

    inputs: what the model takes, with labels [b t] (-100 where ignored), which are shifted here and never
    given to the model, whose own loss would make the logits; or shift_labels, shifted already. model may be
    wrapped (DDP, torch.compile, PEFT around a plain head); the call goes through the wrapper. Of
    `model.config`, final_logit_softcapping, logit_scale, logits_scaling and router_aux_loss_coef are heeded.
    num_items: see `linear_loss`.

    Returns the loss, and with return_outputs the model's outputs (their logits have no positions). Raises
    ValueError without labels, TypeError for a model that can't leave its logits out: use LogitsLoss there.
    """
    base = _unwrapped(model)
    head = _head(base)
    given = dict(inputs)
    labels, shifted = given.pop("labels", None), given.pop("shift_labels", None)
    if shifted is None:
        if labels is None:
            raise ValueError(f'inputs must hold "labels" [b t]; it holds {sorted(given)}')
        shifted = F.pad(labels[:, 1:], (0, 1), value=criterion.ignore_index)
    none = torch.empty(0, dtype=torch.int64, device=head.weight.device)
    outputs = model(**given, output_hidden_states=True, logits_to_keep=none)

    config = base.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = outputs.hidden_states[-1].to(head.weight.device)
    if getattr(config, "logit_scale", None) is not None:
        hidden = hidden * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:
        hidden = hidden / config.logits_scaling
    loss = criterion(
        hidden,
        head.weight,
        shifted.to(hidden.device),
        bias=head.bias,
        softcap=getattr(config, "final_logit_softcapping", None),
        num_items=num_items,
    )
    aux = getattr(outputs, "aux_loss", None)
    if aux is not None:
        loss = loss + config.router_aux_loss_coef * aux.to(loss.device)
    return (loss, outputs) if return_outputs else loss


def _unwrapped(model: nn.Module) -> Any:
    """The model inside torch.compile's, DDP's and PEFT's wrappers."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif not hasattr(inner, "get_output_embeddings") and isinstance(
            getattr(inner, "module", None), nn.Module
        ):
            inner = inner.module
        else:
            return inner


def _head(base: Any) -> nn.Linear:
    """The plain linear head of a model that can run it on no position at all."""
    name = type(base).__name__
    instead = "compute its logits and call LogitsLoss, or call LinearLoss with its hidden states and head"
    if not hasattr(base, "get_output_embeddings") or not hasattr(base, "config"):
        raise TypeError(
            f"{name} isn't of transformers' causal contract (get_output_embeddings, config): {instead}"
        )
    if "logits_to_keep" not in inspect.signature(type(base).forward).parameters:
        raise TypeError(f"{name}.forward has no logits_to_keep, so its logits can't be left out: {instead}")
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        raise TypeError(
            f"the head of {name} is a {type(head).__name__}, not a plain nn.Linear, and its weight alone may not "
            f"be all that it does (an adapter, a quantised head): merge it, or {instead}"
        )
    return head
