"""The nearest code of each key."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lmlab._native import attention as native

# Scores of this many keys at a time: the [keys, codes] matrix of all of them would not stay in cache.
_AT_ONCE = 4096


def assign_codes(k: Float[Tensor, "b g t d"], codebook: Float[Tensor, "g s d"]) -> Int64[Tensor, "b g t"]:
    """argmin_c |k - C_c|^2 over each head's codes, the lowest index on ties; code 0 for a key with NaN.

    Computed in float32 or wider: |C_c|^2 / 2 - k . C_c, which differs from half the distance by a constant.
    """
    wide = torch.promote_types(torch.promote_types(k.dtype, codebook.dtype), torch.float32)
    keys, centres = k.detach().to(wide).contiguous(), codebook.detach().to(wide).contiguous()
    codes = torch.empty(k.shape[:3], dtype=torch.int64, device=k.device)
    if k.device.type == "cpu":
        native.assign(keys, centres, codes, torch.get_num_threads())
        return codes
    half_norm = centres.square().sum(-1) / 2
    with own_precision(k.device):
        for start in range(0, k.shape[2], _AT_ONCE):
            score = half_norm[:, None] - keys[:, :, start : start + _AT_ONCE] @ centres.transpose(-1, -2)
            codes[:, :, start : start + _AT_ONCE] = score.nan_to_num(nan=0.0, posinf=torch.inf).argmin(-1)
    return codes


def own_precision(device: torch.device) -> AbstractContextManager[object]:
    """Products in the dtype of their factors, also under autocast, which would make them half precision."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
