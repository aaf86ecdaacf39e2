"""The gradient measure of rows of real logits."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def row_gradient(logits: Float[Tensor, "*rows n"], alpha: float | Tensor = 1.0) -> Float[Tensor, "*rows"]:
    """alpha (1 - sum p_i^2) with p = softmax(alpha * logits) over the last axis; -inf is a masked key.

    alpha is a number or broadcasts against the rows. Computed without cancellation where one key has all
    the weight: 1 - sum p_i^2 = sum p_i (1 - p_i), with 1 - p of the largest summed from the others.
    """
    factor = alpha[..., None] if isinstance(alpha, Tensor) else alpha
    scaled = (logits * factor).masked_fill(logits == float("-inf"), float("-inf"))
    p = scaled.softmax(-1)
    top = p.argmax(-1, keepdim=True)
    others = p.scatter(-1, top, 0.0)
    rest = others.sum(-1)
    largest = p.gather(-1, top)[..., 0]
    return alpha * (largest * rest + (others * (1 - others)).sum(-1))
