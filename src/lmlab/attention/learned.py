"""A scale that is trained: a gain for each head on top of another rule."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from lmlab.attention.scale import InverseSqrt, ScaleRule, check_rule


class LearnedScale(nn.Module):
    """exp(log_gain[h]) times `initial`; log_gain starts at 0.

    With `EntropyInvariant` inside it is the scalable softmax of 2501.19399 ("ssmax").
    """

    def __init__(self, heads: int, initial: ScaleRule = InverseSqrt()) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads must be >= 1, got {heads}")
        check_rule(initial, "initial")
        self.initial = initial
        self.log_gain = nn.Parameter(torch.zeros(heads))

    def forward(self, n: Float64[Tensor, " *n"], *, head_dim: int) -> Float[Tensor, " h *n"]:
        base = self.initial(n, head_dim=head_dim)
        gain = self.log_gain.exp().to(torch.promote_types(self.log_gain.dtype, base.dtype))
        return gain.reshape(-1, *([1] * base.ndim)) * base
