"""The checks of arguments at the public doors of this room: one clear error, with the right call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmlab.losses.cost import Cost
from lmlab.losses.kinds import EMO, TVD, Loss, as_loss

REDUCTIONS = ("mean", "sum", "none")


def options(
    loss: Loss | str,
    cost: Cost | None,
    *,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    reduction: str,
    budget: int,
) -> Loss:
    """The loss by value, after all that can be said without tensors has been checked."""
    loss = as_loss(loss)
    if cost is not None:
        cost_option(cost)
    if isinstance(loss, EMO) and cost is None:
        raise ValueError(f"{loss} needs a cost: pass cost=Cost.frozen(weight), made before the first step")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing={label_smoothing!r} must be between 0 and 1")
    if isinstance(loss, TVD) and label_smoothing:
        raise ValueError(
            f"label_smoothing={label_smoothing!r} with TVD: 1 - p_t has nothing to smooth; use 0"
        )
    if not (z_loss >= 0 and math.isfinite(z_loss)):
        raise ValueError(f"z_loss={z_loss!r} must be >= 0 and finite")
    softcap_option(softcap)
    reduction_option(reduction)
    budget_option(budget)
    return loss


def cost_option(value: Cost) -> None:
    if not isinstance(value, Cost):
        raise TypeError(f"cost must be a Cost, such as cost=Cost.frozen(weight); got {type(value).__name__}")


def softcap_option(value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"softcap={value!r} must be > 0 and finite, or None for no cap")


def reduction_option(value: str) -> None:
    if value not in REDUCTIONS:
        raise ValueError(f'reduction={value!r} must be "mean", "sum" or "none"')


def budget_option(value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"budget={value!r} must be a number of bytes, an int >= 0, such as 64 * 2**20")


def finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be finite")


def num_items(value: int | Tensor | None, reduction: str) -> None:
    """`num_items` divides the sum, so it belongs to "mean" alone."""
    if value is None:
        return
    if reduction != "mean":
        raise ValueError(f'num_items with reduction={reduction!r}: it is the divisor of "mean"; leave it out')
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise ValueError(f"num_items must be an int or a 0-d tensor; got shape {tuple(value.shape)}")
    elif value <= 0:
        raise ValueError(f"num_items={value!r} must be > 0: the number of kept tokens of the whole batch")


def floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor; got {tensor.dtype}")


def head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """hidden [… d] against weight [v d] and bias [v]: whole, of one dtype, on one device."""
    floating("hidden", hidden)
    floating("weight", weight)
    _gathered("weight", weight)
    if hidden.ndim < 1 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        hint = "; gather a sharded head first" if weight.numel() == 0 or weight.ndim == 1 else ""
        raise ValueError(
            f"hidden must be [… d] and weight [v d]; got hidden {tuple(hidden.shape)} and "
            f"weight {tuple(weight.shape)}{hint}"
        )
    if weight.shape[0] < 1:
        raise ValueError("weight must have at least one row, one per word; gather a sharded head first")
    tensors = {"hidden": hidden, "weight": weight}
    if bias is not None:
        floating("bias", bias)
        _gathered("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be [v] = [{weight.shape[0]}]; got {tuple(bias.shape)}")
        tensors["bias"] = bias
    one_device(tensors)


def logits(tensor: Tensor) -> None:
    floating("logits", tensor)
    if tensor.ndim < 1 or tensor.shape[-1] < 1:
        raise ValueError(f"logits must be [… v] with at least one word; got {tuple(tensor.shape)}")


def one_device(tensors: dict[str, Tensor]) -> None:
    if len({tensor.device for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise TypeError(f"all tensors must be on one device; got {found}")


def one_dtype(tensors: dict[str, Tensor]) -> None:
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise TypeError(
            f"got {found}: cast them to one dtype, or call under torch.autocast, which casts all to its own"
        )


def _gathered(name: str, parameter: Tensor) -> None:
    """A sharded parameter holds a part of the head: refuse before any work."""
    if type(parameter).__name__ == "DTensor":
        raise ValueError(f"{name} is a DTensor, so sharded; pass the whole head: {name}.full_tensor()")
    if hasattr(parameter, "ds_status") and parameter.numel() == 0:
        raise ValueError(
            f"{name} is partitioned by ZeRO-3; call inside deepspeed.zero.GatheredParameters([{name}])"
        )
    if getattr(parameter, "_is_flat_param", False) or (getattr(parameter, "_fsdp_flattened", False)):
        raise ValueError(
            f"{name} is sharded by FSDP outside forward; call inside FSDP.summon_full_params(model), or call "
            "the criterion inside the wrapped model's forward"
        )


def targets(target: Tensor, leading: torch.Size, v: int, ignore_index: int, like: Tensor) -> None:
    """target: int64, of the leading axes, with ids in [0, v) where not ignored."""
    if target.dtype != torch.int64:
        raise TypeError(f"target must be an int64 tensor of word ids; got {target.dtype}")
    if target.shape != leading:
        raise ValueError(
            f"target must have the leading axes of its partner, {tuple(leading)}; got {tuple(target.shape)}"
        )
    one_device({"the logits' side": like, "target": target})
    word_ids("target", target, v, ignore_index)


def word_ids(name: str, ids: Tensor, v: int, ignore_index: int | None = None) -> None:
    """On accelerators a device assert, as torch's own: nothing is read back."""
    outside = (ids < 0) | (ids >= v)
    if ignore_index is not None:
        outside &= ids != ignore_index
    if ids.is_cuda:
        torch._assert_async(~outside.any())
    elif outside.any():
        position = tuple(outside.nonzero()[0].tolist())
        unless = "" if ignore_index is None else f" and isn't ignore_index={ignore_index}"
        raise IndexError(f"{name}{list(position)} = {int(ids[position])} is outside [0, {v}){unless}")


def vocabulary(cost: Cost | None, v: int, device: torch.device) -> None:
    if cost is None:
        return
    if cost.vocabulary != v:
        raise ValueError(f"the cost knows {cost.vocabulary} words and the head {v}; make it of the same head")
    for name, buffer in cost.named_buffers():
        if buffer.device != device:
            raise TypeError(
                f"the cost's {name} is on {buffer.device}, the head on {device}: call cost.to(weight.device)"
            )
