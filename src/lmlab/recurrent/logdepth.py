"""Linear recurrences in logarithmic depth, by torch operations: for devices without a kernel of ours."""

from __future__ import annotations

import torch
from jaxtyping import Inexact
from torch import Tensor


def log_depth_scan(
    a: Inexact[Tensor, "*coefficients"], b: Inexact[Tensor, "b t n"]
) -> Inexact[Tensor, "b t n"]:
    """h_t = a_t h_{t-1} + b_t from h_0 = 0, a [b t n] or [b t n n], by odd and even steps (Blelloch).

    Neighbours are joined, (a₂, b₂)∘(a₁, b₁) = (a₂a₁, a₂b₁ + b₂), half as many are solved, and the steps
    between are filled in: log t levels, 2t products in all, any t.
    """
    steps = b.shape[1]
    if steps <= 1:
        return b
    even = steps // 2 * 2
    a1, a2 = a[:, 0:even:2], a[:, 1:even:2]
    b1, b2 = b[:, 0:even:2], b[:, 1:even:2]
    dense = a.ndim == b.ndim + 1
    odd = log_depth_scan(a2 @ a1 if dense else a2 * a1, _apply(a2, b1) + b2)  # states after steps 2, 4, …
    before = torch.cat([torch.zeros_like(b[:, :1]), odd], 1)[:, : steps - even // 2]
    first = _apply(a[:, 0::2], before) + b[:, 0::2]
    if steps > even:
        return torch.cat([torch.stack([first[:, :-1], odd], 2).flatten(1, 2), first[:, -1:]], 1)
    return torch.stack([first, odd], 2).flatten(1, 2)


def _apply(a: Tensor, h: Tensor) -> Tensor:
    """a_t h_t for diagonal or dense a."""
    return a * h if a.ndim == h.ndim else (a @ h[..., None])[..., 0]
