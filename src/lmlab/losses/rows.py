"""What goes into a visit of rows of logits and what comes out; `visit.py` does it.

A visit takes logits u [r v] and, for each row, the target, the row's costs and where its results go. It fills
`RowResults` and, where asked, writes du. The formulas are those of docs/losses.md; the target's own term is
kept out of every sum, so that ce, emo and 1 - p_t stay right in relative terms as p_t -> 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.losses.kinds import Loss


@dataclass(frozen=True)
class RowOptions:
    """What is the same for all rows of a call."""

    loss: Loss
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None


@dataclass(frozen=True)
class RowCosts:
    """The costs of the rows of a visit: row i has table[index[i]], or 1 for every wrong word (table None)."""

    table: Tensor | None
    index: Tensor | None
    cosines: bool
    """The table holds cosines; the cost is max(0, 1 - cosine)."""


@dataclass(frozen=True)
class RowResults:
    """Per token of a call, in the type in which the loss is summed; ignored tokens keep their zeros."""

    value: Tensor
    ce: Tensor
    emo: Tensor
    lse: Tensor
    correct: Tensor

    @classmethod
    def zeros(cls, n: int, dtype: torch.dtype, device: torch.device) -> RowResults:
        value, ce, emo, lse = torch.zeros(4, n, dtype=dtype, device=device).unbind()
        return cls(value, ce, emo, lse, torch.zeros(n, dtype=torch.bool, device=device))

    def stats(self, shape: torch.Size) -> list[Tensor]:
        """ce, emo, lse and correct in the tokens' shape."""
        return [each.view(shape) for each in (self.ce, self.emo, self.lse, self.correct)]


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which a loss is summed: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
