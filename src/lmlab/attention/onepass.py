"""Attention under any band in one native pass over the keys, forward and backward, in O(T d) memory.

Every part of a band is an interval of keys for each query (`lmlab.attention.band`); the kernel forms the
logits of each interval from that part's rotated copies and carries one running softmax through all of them.
The backward pass forms the weights again from the logits, the row's largest logit and 1 over its sum.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmlab._native import rope as native
from lmlab.attention.band import Band

_KINDS = {"plain": 0, "window": 1, "split": 2, "chunks": 3}


def attend_one_pass(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    v: Tensor,
    *,
    band: Band,
    start: Tensor,
    slopes: Tensor | None = None,
    scale: float = 1.0,
    wide: bool = True,
) -> Tensor:
    """softmax(scale · q·k − slope · r) v on the CPU, for parts of q [b h t d] and k [b hk T d], and v.

    `start` [b] is where each row's queries begin (int64). wide: use registers of 64 bytes where the processor
    has them. Half types are computed in float32."""
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    parts = [x.to(dtype).contiguous() for x in (*queries, *keys, v)]
    if slopes is not None:
        slopes = slopes.to(dtype)
    out: Tensor = _OnePass.apply(band, start, slopes, scale, wide, *parts)
    return out.to(v.dtype)


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, band: Band, start: Tensor, slopes: Tensor | None, scale: float, wide: bool, *parts: Tensor
    ) -> Tensor:
        queries, keys, v = parts[: band.parts], parts[band.parts : -1], parts[-1]
        out = torch.empty_like(queries[0])
        top, share = out.new_empty(2, *out.shape[:3])
        native.band_forward(
            **_arguments(band, start, slopes, scale, wide, queries, keys, v),
            out=out.detach(),
            top=top,
            share=share,
        )
        ctx.save_for_backward(start, slopes, out, top, share, *parts)
        ctx.band, ctx.scale, ctx.wide = band, scale, wide
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        start, slopes, out, top, share, *parts = ctx.saved_tensors
        band: Band = ctx.band
        queries, keys, v = parts[: band.parts], parts[band.parts : -1], parts[-1]
        d_queries, d_keys, d_v = (
            [torch.zeros_like(q) for q in queries],
            [torch.zeros_like(k) for k in keys],
            torch.zeros_like(v),
        )
        native.band_backward(
            **_arguments(band, start, slopes, ctx.scale, ctx.wide, queries, keys, v),
            out=out.detach(),
            top=top,
            share=share,
            d_out=grads[0].contiguous(),
            d_q=d_queries,
            d_k=d_keys,
            d_v=d_v,
        )
        return None, None, None, None, None, *d_queries, *d_keys, d_v


def _arguments(
    band: Band,
    start: Tensor,
    slopes: Tensor | None,
    scale: float,
    wide: bool,
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    v: Tensor,
) -> dict[str, Any]:
    return {
        "q": [q.detach() for q in queries],
        "k": [k.detach() for k in keys],
        "v": v.detach(),
        "offset": start,
        "slopes": slopes,
        "kind": _KINDS[band.kind],
        "size": band.step if band.kind == "chunks" else band.window,
        "sinks": band.sinks,
        "scale": scale,
        "wide": wide,
        "threads": torch.get_num_threads(),
    }
