"""Gradients of the keys, every k-hat_j taken as free: pair by pair, or through sums over codes in linear time."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from lmlab.attention.vq import sweep


def far_part(
    out: Tensor, plan: sweep.Plan, inputs: sweep.Inputs, lse: Tensor, grad: Tensor, dot: Tensor
) -> None:
    """Adds to `out` [b g t d] what each key hears from the blocks of rows that see it merged, in linear time.

    Key j is merged for the block that starts at row a if j < a - recent. Per code, P = sum omega q (x) do and
    pi = sum omega dot q over the blocks from the last back; then dk = P v - pi.
    """
    inputs = inputs.scaled()
    b, g, _, t, d = inputs.q.shape
    s, e = inputs.codebook.shape[1], inputs.v.shape[-1]
    outer, sums = inputs.q.new_zeros(b, g, s, d, e), inputs.q.new_zeros(b, g, s, d)
    batch = torch.arange(b, device=grad.device)[:, None, None]
    head = torch.arange(g, device=grad.device)[:, None]
    for start, stop in reversed(sweep.blocks_of(plan, t)):
        first = max(start, plan.recent)  # keys of the state get no gradient
        if first < stop:
            codes, values = inputs.codes[:, :, first:stop], inputs.v[:, :, first:stop, :, None]
            index = (batch, head, codes.clamp(min=0))
            heard = (outer[index] @ values)[..., 0] - sums[index]
            out[:, :, first - plan.recent : stop - plan.recent] += heard * (codes >= 0)[..., None]
        sweep.add_outer(inputs, (start, stop), lse, grad, dot, outer, sums)


def by_pairs(
    plan: sweep.Plan,
    inputs: sweep.Inputs,
    lse: Tensor,
    grad: Tensor,
    dot: Tensor,
    *,
    first: int,
    reach: int,
    blocks: int | None,
) -> tuple[Tensor, Tensor | None]:
    """dk [b g t d] and its near part, pair by pair: key j hears query i if floor(i/reach) - floor(j/reach) < blocks.

    `first` is the absolute position of the sweep's first row; blocks None: every query hears.
    """
    inputs = inputs.scaled()
    b, g, m, t, d = inputs.q.shape
    skip = plan.recent
    far_part = inputs.q.new_zeros(b, g, t, d)
    near_part = None if inputs.k_near is None else inputs.q.new_zeros(b, g, t, d)
    edges = sorted({0, t, *range(-first % reach, t, reach)})
    spans = list(itertools.pairwise(edges))
    for number, (low, high) in enumerate(spans):
        codes = inputs.codes[:, :, skip + low : skip + high]
        keys, values = sweep.look_up(inputs.codebook, codes), inputs.v[:, :, skip + low : skip + high]
        for start, stop in spans[number : None if blocks is None else number + blocks]:
            rows = slice(start, stop)
            i = torch.arange(start, stop, device=grad.device)[:, None]
            distance = i - torch.arange(low, high, device=grad.device)[None]
            q, do = inputs.q[:, :, :, rows], grad[:, :, :, rows]
            near = distance < plan.window
            logits = sweep.rows_times(q, keys)
            if inputs.q_near is not None and inputs.k_near is not None:
                near_logits = sweep.rows_times(
                    inputs.q_near[:, :, :, rows], inputs.k_near[:, :, skip + low : skip + high]
                )
                logits = torch.where(near, near_logits, logits)
            if inputs.bias is not None:
                bias = inputs.bias[..., distance.clamp(0, plan.window - 1)]
                logits = logits + torch.where(near, bias, torch.zeros_like(bias))
            hidden = (distance < (1 if plan.strict else 0)) | (codes < 0)[:, :, None, None, :]
            level = lse[:, :, :, rows, None].clamp(min=torch.finfo(grad.dtype).min)
            weight = (logits - level).masked_fill(hidden, -math.inf).exp_()
            change = weight * (sweep.rows_times(do, values) - dot[:, :, :, rows, None])
            if near_part is not None and inputs.q_near is not None:
                near_part[:, :, low:high] += sweep.rows_onto(
                    change.masked_fill(~near, 0.0), inputs.q_near[:, :, :, rows]
                )
                change = change.masked_fill(near, 0.0)
            far_part[:, :, low:high] += sweep.rows_onto(change, q)
    return far_part, near_part
