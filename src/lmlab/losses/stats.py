"""What a loss tells beside its value, for logging."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossStats:
    """Per-token statistics of one call: detached, of the shape of target, 0 or False where ignored."""

    ce: Tensor
    """-log p_t, never smoothed nor weighted: perplexity stays readable whatever the loss is."""
    emo: Tensor | None
    """sum_j p_j c[j, t], without shift; None when no cost was given."""
    lse: Tensor
    """log sum_j exp(z_j)."""
    correct: Tensor
    """bool: the target is the argmax (the first of equals)."""
    count: int
    """Number of kept tokens."""
