"""One pass over the blocks of a sequence, forwards and backwards: the arithmetic of VQ attention in torch.

Every key was replaced by a code of its head. Keys that lie at least `window` positions back and share a code
have one logit, so they merge exactly: code c with count N and mean value mu is one entry with logit
q . C_c + ln N and value mu. A block of queries therefore sees s merged entries, the r keys before the block
(r at least window - 1), and the block itself.

Letters: b batch, g key heads, m query heads a key head, t time, n rows of a block, d key width, e value
width, s codes, r recent keys. Code -1 stands for "no key here".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """What a sweep needs to know beside its tensors.

    block: rows at a time. window: distances below it are near. recent: keys before a block that are still
    single, at least window - 1. strict: a query doesn't see its own position (half of an encoder).
    """

    block: int
    window: int
    recent: int
    strict: bool = False


@dataclass(frozen=True)
class Inputs:
    """Tensors of a sweep, all of one dtype. Products of queries and keys are multiplied by `scale`.

    q: [b g m t d], against codes and far keys. q_near [b g m t d] and k_near [b g r+t d] for near pairs, or
    None where those are q and the codes themselves. v: [b g r+t e] and codes: [b g r+t], the recent keys of
    the state first. codebook: [g s d]. bias: [g m w] or None.
    """

    q: Tensor
    q_near: Tensor | None
    k_near: Tensor | None
    v: Tensor
    codes: Tensor
    codebook: Tensor
    bias: Tensor | None
    scale: float = 1.0

    def scaled(self) -> Inputs:
        """The same with the scale in q and q_near."""
        if self.scale == 1.0:
            return self
        q_near = None if self.q_near is None else self.q_near * self.scale
        return replace(self, q=self.q * self.scale, q_near=q_near, scale=1.0)

    @property
    def length(self) -> int:
        return self.q.shape[3]


@dataclass
class Far:
    """Counts [b g s] and mean values [b g s e] of the merged keys."""

    count: Tensor
    mean: Tensor

    @classmethod
    def empty(cls, inputs: Inputs) -> Far:
        b, g = inputs.codes.shape[:2]
        s, e = inputs.codebook.shape[1], inputs.v.shape[-1]
        return cls(inputs.v.new_zeros(b, g, s), inputs.v.new_zeros(b, g, s, e))

    def clone(self) -> Far:
        return Far(self.count.clone(), self.mean.clone())

    def add(self, codes: Tensor, values: Tensor) -> None:
        """Merges keys, codes [b g n] and values [b g n e], in place."""
        b, g, s, e = self.mean.shape
        seen = (codes >= 0).to(values.dtype)
        place = codes.clamp(min=0)
        flat = (place + s * torch.arange(b * g, device=codes.device).view(b, g, 1)).reshape(-1)
        new = torch.zeros_like(self.count).view(-1).index_add_(0, flat, seen.reshape(-1)).view(b, g, s)
        total = torch.zeros_like(self.mean).view(-1, e)
        total.index_add_(0, flat, (values * seen[..., None]).reshape(-1, e))
        self.count += new
        # the mean moves by the new keys' distance from it: no sum grows with t
        shift = total.view(b, g, s, e) - new[..., None] * self.mean
        self.mean += shift / self.count.clamp(min=1)[..., None]


def blocks_of(plan: Plan, length: int) -> list[tuple[int, int]]:
    return [(a, min(a + plan.block, length)) for a in range(0, length, plan.block)]


def _band(plan: Plan, inputs: Inputs, rows: int) -> tuple[Tensor, Tensor]:
    """Distance i - j of a block's rows to its r + rows single keys [n k], and the bias [g m n k] or [n k].

    Keys that a row may not see have bias -inf."""
    device = inputs.q.device
    i = torch.arange(rows, device=device)[:, None] + plan.recent
    distance = i - torch.arange(plan.recent + rows, device=device)[None]
    hidden = distance < (1 if plan.strict else 0)
    if inputs.bias is None:
        band = inputs.q.new_zeros(distance.shape)
    else:
        band = inputs.bias[..., distance.clamp(0, plan.window - 1)]
        band = torch.where(distance < plan.window, band, torch.zeros_like(band))
    return distance, band.masked_fill(hidden, -math.inf)


def _scores(
    plan: Plan, inputs: Inputs, far: Far, start: int, stop: int, distance: Tensor, band: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of rows start..stop on the codes [b g m n s] and on the single keys [b g m n k], and their keys."""
    q = inputs.q[:, :, :, start:stop]
    single = inputs.codes[:, :, start : stop + plan.recent]
    keys = look_up(inputs.codebook, single)
    merged = rows_times(q, inputs.codebook) + far.count.log()[:, :, None, None, :]
    local = rows_times(q, keys)
    if inputs.q_near is not None and inputs.k_near is not None:
        near_keys = inputs.k_near[:, :, start : stop + plan.recent]
        near = rows_times(inputs.q_near[:, :, :, start:stop], near_keys)
        local = torch.where(distance < plan.window, near, local)
    local = local + band
    local.masked_fill_((single < 0)[:, :, None, None, :], -math.inf)
    return merged, local, keys


def look_up(codebook: Tensor, codes: Tensor) -> Tensor:
    """The codes' vectors, [g s d] by [b g k] -> [b g k d]."""
    heads = torch.arange(codebook.shape[0], device=codes.device)[:, None]
    return codebook[heads, codes.clamp(min=0)]


def add_by_code(codebook: Tensor, codes: Tensor, rows: Tensor) -> None:
    """Adds rows [b g k d] to the entries of [g s d] that their codes [b g k] name, in place."""
    g, s, d = codebook.shape
    place = codes.clamp(min=0) + s * torch.arange(g, device=codes.device)[:, None]
    codebook.view(g * s, d).index_add_(0, place.reshape(-1), rows.reshape(-1, d))


def rows_times(rows: Tensor, keys: Tensor) -> Tensor:
    """[b g m n d] by [b g k d] or [g k d] -> [b g m n k], the m heads' rows stacked into one product."""
    b, g, m, n, d = rows.shape
    return (rows.reshape(b, g, m * n, d) @ keys.transpose(-1, -2)).view(b, g, m, n, -1)


def rows_onto(weights: Tensor, rows: Tensor) -> Tensor:
    """Sum over heads and rows of weights [b g m n k] times rows [b g m n d] -> [b g k d]."""
    b, g, m, n, k = weights.shape
    return weights.reshape(b, g, m * n, k).transpose(-1, -2) @ rows.reshape(b, g, m * n, -1)


def forward(plan: Plan, inputs: Inputs, far: Far) -> tuple[Tensor, Tensor]:
    """Output [b g m t e] and log-sum-exp [b g m t]; `far` moves to the end of the sequence, in place.

    A row that sees no key gives 0 and -inf.
    """
    inputs = inputs.scaled()
    out = inputs.v.new_empty(*inputs.q.shape[:4], inputs.v.shape[-1])
    lse = inputs.v.new_empty(inputs.q.shape[:4])
    spans = blocks_of(plan, inputs.length)
    bands: dict[int, tuple[Tensor, Tensor]] = {}
    for start, stop in spans:
        distance, band = bands.setdefault(stop - start, _band(plan, inputs, stop - start))
        merged, local, _ = _scores(plan, inputs, far, start, stop, distance, band)
        top = torch.maximum(merged.amax(-1), local.amax(-1)).clamp(min=torch.finfo(out.dtype).min)
        p_merged = merged.sub_(top[..., None]).exp_()
        p_local = local.sub_(top[..., None]).exp_()
        total = p_merged.sum(-1) + p_local.sum(-1)
        values = inputs.v[:, :, start : stop + plan.recent]
        mixed = rows_times(p_merged, far.mean.transpose(-1, -2)) + rows_times(
            p_local, values.transpose(-1, -2)
        )
        out[:, :, :, start:stop] = mixed / total.clamp(min=torch.finfo(out.dtype).tiny)[..., None]
        lse[:, :, :, start:stop] = top + total.log()
        far.add(inputs.codes[:, :, start:stop], inputs.v[:, :, start:stop])
    return out, lse


def segment(blocks: int) -> int:
    """Blocks between two kept states: about as many states are kept as are replayed at a time."""
    return max(1, math.isqrt(max(0, blocks - 1)) + 1)


@dataclass
class Gradients:
    """Of a sweep's inputs. k [b g r+t d]: every k-hat_j taken as free, where asked for; k_near its near part."""

    q: Tensor
    q_near: Tensor | None
    k: Tensor | None
    k_near: Tensor | None
    v: Tensor
    codebook: Tensor | None
    bias: Tensor | None


def backward(
    plan: Plan,
    inputs: Inputs,
    far: Far,
    lse: Tensor,
    grad: Tensor,
    dot: Tensor,
    *,
    keys: bool,
    codebook: bool,
) -> Gradients:
    """Gradients, given the state before the first row, and `lse` and `dot` = out . grad [b g m t] of whole rows.

    Blocks are visited backwards; per code A = sum omega do, and where `keys` asks for every key's gradient
    also P = sum omega q (x) do and pi = sum omega dot q, over the queries that see the key merged. omega =
    exp(q . C - lse) is the weight of one key of the code. A key that was merged after block i then has
    dv = A, and, with every k-hat_j taken as free, dk = P v - pi.
    """
    scale, inputs = inputs.scale, inputs.scaled()
    b, g, m, t, d = inputs.q.shape
    s, e = inputs.codebook.shape[1], inputs.v.shape[-1]
    new = inputs.q.new_zeros
    total = plan.recent + t
    result = Gradients(
        q=torch.empty_like(inputs.q),
        q_near=None if inputs.q_near is None else torch.empty_like(inputs.q_near),
        k=new(b, g, total, d) if keys else None,
        k_near=torch.zeros_like(inputs.k_near) if inputs.k_near is not None and (keys or codebook) else None,
        v=torch.zeros_like(inputs.v),
        codebook=torch.zeros_like(inputs.codebook) if codebook else None,
        bias=None if inputs.bias is None else torch.zeros_like(inputs.bias),
    )
    later = new(b, g, s, e)
    later_outer, later_q = (new(b, g, s, d, e), new(b, g, s, d)) if keys else (None, None)
    spans = blocks_of(plan, t)
    every = segment(len(spans))
    kept = _kept(inputs, far, spans, every)
    bands: dict[int, tuple[Tensor, Tensor]] = {}
    rows_of = torch.arange(g, device=grad.device)[:, None]
    for first in reversed(range(0, len(spans), every)):
        states = _states(inputs, kept[first // every], spans[first : first + every])
        for (start, stop), far in reversed(list(zip(spans[first : first + every], states, strict=True))):
            codes = inputs.codes[:, :, start:stop]
            seen = (codes >= 0).to(grad.dtype)[..., None]
            batch = torch.arange(b, device=grad.device)[:, None, None]
            index = (batch, rows_of, codes.clamp(min=0))
            result.v[:, :, start:stop] += later[index] * seen
            if later_outer is not None and later_q is not None and result.k is not None:
                value = inputs.v[:, :, start:stop, :, None]
                result.k[:, :, start:stop] += ((later_outer[index] @ value)[..., 0] - later_q[index]) * seen
            distance, band = bands.setdefault(stop - start, _band(plan, inputs, stop - start))
            _block_backward(plan, inputs, far, (start, stop), distance, band, lse, grad, dot, result, later)
            if later_outer is not None and later_q is not None:
                add_outer(inputs, (start, stop), lse, grad, dot, later_outer, later_q)
    if scale != 1.0:
        result.q *= scale
        if result.q_near is not None:
            result.q_near *= scale
    return result


def _kept(inputs: Inputs, far: Far, spans: list[tuple[int, int]], every: int) -> list[Far]:
    """The state before each `every`th block."""
    state, kept = far.clone(), []
    for index, (start, stop) in enumerate(spans):
        if index % every == 0:
            kept.append(state.clone())
        state.add(inputs.codes[:, :, start:stop], inputs.v[:, :, start:stop])
    return kept


def _states(inputs: Inputs, far: Far, spans: list[tuple[int, int]]) -> list[Far]:
    """The states before each of these blocks, from that before the first."""
    states = [far]
    for start, stop in spans[:-1]:
        far = far.clone()
        far.add(inputs.codes[:, :, start:stop], inputs.v[:, :, start:stop])
        states.append(far)
    return states


def _block_backward(
    plan: Plan,
    inputs: Inputs,
    far: Far,
    span: tuple[int, int],
    distance: Tensor,
    band: Tensor,
    lse: Tensor,
    grad: Tensor,
    dot: Tensor,
    result: Gradients,
    later: Tensor,
) -> None:
    start, stop = span
    rows, single = slice(start, stop), slice(start, stop + plan.recent)
    q, do = inputs.q[:, :, :, rows], grad[:, :, :, rows]
    merged, local, keys = _scores(plan, inputs, far, start, stop, distance, band)
    level = lse[:, :, :, rows, None].clamp(min=torch.finfo(grad.dtype).min)
    p_merged, p_local = (merged - level).exp_(), (local - level).exp_()
    values = inputs.v[:, :, single]
    d_merged = p_merged * (rows_times(do, far.mean) - dot[:, :, :, rows, None])
    d_local = p_local * (rows_times(do, values) - dot[:, :, :, rows, None])
    later += rows_onto(p_merged, do) / far.count.clamp(min=1)[..., None]
    result.v[:, :, single] += rows_onto(p_local, do)
    near = distance < plan.window
    d_far = d_local if inputs.k_near is None else d_local.masked_fill(near, 0.0)
    result.q[:, :, :, rows] = rows_times(d_merged, inputs.codebook.transpose(-1, -2))
    result.q[:, :, :, rows] += rows_times(d_far, keys.transpose(-1, -2))
    d_keys = rows_onto(d_far, q) if result.k is not None or result.codebook is not None else None
    if result.k is not None and d_keys is not None:
        result.k[:, :, single] += d_keys
    if inputs.q_near is not None and inputs.k_near is not None and result.q_near is not None:
        d_near = d_local.masked_fill(~near, 0.0)
        near_keys = inputs.k_near[:, :, single]
        result.q_near[:, :, :, rows] = rows_times(d_near, near_keys.transpose(-1, -2))
        if result.k_near is not None:
            result.k_near[:, :, single] += rows_onto(d_near, inputs.q_near[:, :, :, rows])
    if result.bias is not None:
        within = near & (distance >= (1 if plan.strict else 0))
        by_distance = d_local.sum(0)[..., within]
        result.bias.index_add_(-1, distance[within], by_distance)
    if result.codebook is not None and d_keys is not None:
        result.codebook += rows_onto(d_merged, q).sum(0)
        add_by_code(result.codebook, inputs.codes[:, :, single], d_keys)


def add_outer(
    inputs: Inputs,
    span: tuple[int, int],
    lse: Tensor,
    grad: Tensor,
    dot: Tensor,
    outer: Tensor,
    sums: Tensor,
) -> None:
    """Adds the rows of a block to P [b g s d e] and pi [b g s d]; the scale is in the queries."""
    rows = slice(*span)
    q, do = inputs.q[:, :, :, rows], grad[:, :, :, rows]
    level = lse[:, :, :, rows, None].clamp(min=torch.finfo(grad.dtype).min)
    # no key of a code weighs more than 1; a code without keys, which might, is read by none
    omega = (rows_times(q, inputs.codebook) - level).clamp_(max=0).exp_()
    products = q[..., :, None] * do[..., None, :]
    outer += rows_onto(omega, products.flatten(-2)).view_as(outer)
    sums += rows_onto(omega, q * dot[:, :, :, rows, None])
