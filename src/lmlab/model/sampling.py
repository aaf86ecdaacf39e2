"""From logits to the next token: temperature, top-k, top-p, min-p, and one uniform number a token."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lmlab.model.ops import accumulation_dtype


def check_filters(temperature: float, top_k: int | None, top_p: float | None, min_p: float | None) -> None:
    """ValueError naming the argument that is out of range."""
    if not (temperature >= 0 and temperature < float("inf")):
        raise ValueError(f"temperature must be a number >= 0 (0 is greedy), got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be an integer >= 1 or None, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1] or be None, got {top_p}")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p must lie in [0, 1] or be None, got {min_p}")


@torch.no_grad()
def next_token_probs(
    logits: Float[Tensor, "b v"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Float[Tensor, "b v"]:
    """The distribution that the next token is drawn from; float32 or wider.

    p = softmax(z/temperature), then in this order, each on what the one before left, renormalised: top_k
    keeps the k largest (of equals at the edge the lower ids), top_p the shortest prefix of the sorted p
    whose sum reaches top_p, min_p every p >= min_p · max p. Temperature 0: one on the largest logit (of
    equals the lowest id). Raises ValueError for arguments out of range.
    """
    check_filters(temperature, top_k, top_p, min_p)
    z = logits.to(accumulation_dtype(logits.dtype))
    if temperature == 0:
        return torch.zeros_like(z).scatter_(1, z.argmax(dim=1, keepdim=True), 1.0)
    p = torch.softmax(z / temperature, dim=-1)
    if (top_k is not None and top_k < p.shape[1]) or top_p is not None:
        # A stable sort keeps equal probabilities in the order of their ids.
        p_sorted, order = torch.sort(p, dim=-1, descending=True, stable=True)
        if top_k is not None and top_k < p.shape[1]:
            p_sorted[:, top_k:] = 0
            p_sorted /= p_sorted.sum(dim=-1, keepdim=True)
        if top_p is not None:
            before = p_sorted.cumsum(dim=-1) - p_sorted
            keep = before < top_p
            keep[:, 0] = True
            p_sorted *= keep
        p = torch.zeros_like(p).scatter_(1, order, p_sorted)
        p /= p.sum(dim=-1, keepdim=True)
    if min_p is not None:
        p *= p >= min_p * p.amax(dim=-1, keepdim=True)
        p /= p.sum(dim=-1, keepdim=True)
    return p


def uniforms(seed: int, rows: list[int], count: int) -> NDArray[np.float64]:
    """[rows, count] numbers in [0, 1): number i of row r depends on (seed, r, i) only."""
    mask = (1 << 64) - 1
    return np.stack(
        [
            np.random.Generator(np.random.Philox(key=np.array([seed & mask, row], dtype=np.uint64))).random(
                count
            )
            for row in rows
        ]
    )


def inverse_cdf(p: Float[Tensor, "b v"], u: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The first token whose cumulative probability exceeds u: a token of probability 0 is never drawn."""
    cumulative = p.double().cumsum(dim=-1)
    threshold = (u.double() * cumulative[:, -1]).unsqueeze(1)
    drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
    # Rounding may carry u·total up to total itself: the answer is then the last token that has any mass.
    last = p.shape[1] - 1 - p.flip(1).ne(0).to(torch.uint8).argmax(dim=1)
    return torch.minimum(drawn, last)
