"""Rows of attention by the formula: logits formed, parts chosen, softmax. Exact for everything.

It serves a few rows (decoding), ragged offsets and biases. Many rows go through in tiles whose logits are
formed again in the backward pass, so that memory stays O(T d).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lmlab.attention.band import Band

_TILE_ELEMENTS = 1 << 24  # of logits held at a time


def attend_rows(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    v: Tensor,
    *,
    band: Band,
    positions: Tensor,
    starts: Sequence[int],
    slopes: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """softmax(scale · q·k − slope · r) v, for parts of q [b h t d] and k [b hk T d], and v [b hk T d].

    The keys of part p may be a stretch that begins at key starts[p] and holds all that the part needs.
    `positions` [t] or [b t] is where the queries stand (int64, on the CPU); `slopes` [h]."""
    b, h, t, _ = queries[0].shape
    room = _TILE_ELEMENTS // max(1, b * h * v.shape[2])
    tile = t if t <= 16 else max(16, min(512, room))
    if tile >= t:
        return _rows(queries, keys, v, band, positions, starts, slopes, scale)
    tracked = torch.is_grad_enabled() and any(x.requires_grad for x in (*queries, *keys, v))
    outs = []
    for a in range(0, t, tile):
        q = [x[:, :, a : a + tile] for x in queries]
        i = positions[..., a : a + tile]
        args = (q, keys, v, band, i, starts, slopes, scale)
        outs.append(checkpoint(_rows, *args, use_reentrant=False) if tracked else _rows(*args))
    return torch.cat(outs, dim=2)


def _rows(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    v: Tensor,
    band: Band,
    positions: Tensor,
    starts: Sequence[int],
    slopes: Tensor | None,
    scale: float,
) -> Tensor:
    b, h, t, d = queries[0].shape
    hk, n = v.shape[1], v.shape[2]
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    first, last = int(positions.min()), int(positions.max())
    stacked = [q.to(dtype).reshape(b, hk, h // hk * t, d) for q in queries]

    ranges = [band.columns(p, first, last, n) for p in range(band.parts)]
    start = min(lo for lo, hi in ranges if hi > lo)
    stop = max(hi for lo, hi in ranges if hi > lo)
    positions = positions.to(v.device)
    i = positions[:, None] if positions.ndim == 1 else positions[:, None, None, :, None]
    j = torch.arange(start, stop, device=v.device)
    part, keep = band.select(i, j)

    cuts = sorted({c for lo, hi in ranges if hi > lo for c in (lo, hi)})
    segments = []
    for lo, hi in itertools.pairwise(cuts):
        here = [p for p, (a, e) in enumerate(ranges) if a < hi and e > lo]
        logits = None
        for p in here:  # nearly always one: only a segment that a boundary crosses forms two
            product = stacked[p] @ keys[p][:, :, lo - starts[p] : hi - starts[p]].to(dtype).transpose(-1, -2)
            product = product.view(b, hk, h // hk, t, hi - lo)
            mine = part[..., lo - start : hi - start] == p
            logits = product if logits is None else torch.where(mine, product, logits)
        if logits is None:  # a gap between sinks and window
            logits = torch.zeros(b, hk, h // hk, t, hi - lo, dtype=dtype, device=v.device)
        segments.append(logits)
    logits = (segments[0] if len(segments) == 1 else torch.cat(segments, dim=-1)) * scale
    if slopes is not None:
        logits = logits - slopes.to(dtype).view(hk, h // hk, 1, 1) * (i - j)
    weights = logits.masked_fill(~keep, float("-inf")).softmax(dim=-1).view(b, hk, h // hk * t, stop - start)
    return (weights @ v[:, :, start:stop].to(dtype)).view(b, h, t, d).to(v.dtype)
