"""Softmax attention over quantised keys, row by row, all pairs, as the formula reads: the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.rope import Rotary, frequencies, rotate


def nearest(k: Tensor, codebook: Tensor) -> Tensor:
    """argmin_c |k_j - C_c|^2, [b g t d] and [g s d] -> [b g t]."""
    return (k[:, :, :, None, :] - codebook[None, :, None]).square().sum(-1).argmin(-1)


def attention(
    q: Tensor,
    k_hat: Tensor,
    v: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | None = None,
    rotary: Rotary | None = None,
    window: int | None = None,
    causal: bool = True,
    key_mask: Tensor | None = None,
) -> Tensor:
    """q [b h t d], quantised keys [b g t d], v [b g t e] -> [b h t e]; scale a number or [b h t]."""
    b, h, t, d = q.shape
    group = h // k_hat.shape[1]
    rows = []
    for i in range(t):
        seen = range(i + 1) if causal else range(t)
        j = torch.tensor(list(seen))
        keys = k_hat[:, :, j].repeat_interleave(group, 1)
        query = q[:, :, i : i + 1]
        if rotary is not None and window is not None:
            angles, factor = frequencies(rotary)
            distance = (i - j).clamp(max=window)
            turned = rotate(query.expand(b, h, len(j), d), distance, angles, interleaved=rotary.interleaved)
            logits = factor**2 * (turned * keys).sum(-1)
        else:
            logits = (query * keys).sum(-1)
        logits = logits * (scale if isinstance(scale, float) else scale[:, :, i : i + 1])
        if bias is not None:
            w = bias.shape[1] if causal else (bias.shape[1] + 1) // 2
            index = (i - j) if causal else w - 1 + (i - j)
            inside = (i - j).abs() < w
            logits = logits + torch.where(
                inside, bias[:, index.clamp(0, bias.shape[1] - 1)], torch.zeros_like(logits)
            )
        if key_mask is not None:
            logits = logits.masked_fill(~key_mask[:, None, j], -torch.inf)
        weight = (logits - logits.amax(-1, keepdim=True).clamp(min=-1e300)).exp()
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-300)
        rows.append((weight[..., None] * v[:, :, j].repeat_interleave(group, 1)).sum(2))
    return torch.stack(rows, 2)
