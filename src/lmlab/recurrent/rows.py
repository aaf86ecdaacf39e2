"""How sequences lie in a matrix of rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Where step t of sequence b stands in a matrix of rows: `starts[t] + b * row_step`.

    So batch-first, time-first and packed sequences are one layout. starts: int64 [t]. lengths: int64 [b], a
    step t >= lengths[b] isn't there; None: all are. cut: bool [rows], the state before such a step is zero.
    """

    batch: int
    starts: Tensor
    row_step: int
    lengths: Tensor | None = None
    cut: Tensor | None = None
    reverse: bool = False

    @property
    def steps(self) -> int:
        return self.starts.numel()

    def index(self) -> tuple[Tensor, Tensor]:
        """Row numbers [t b], and which of these steps are there."""
        rows = self.starts[:, None] + torch.arange(self.batch) * self.row_step
        if self.lengths is None:
            return rows, torch.ones_like(rows, dtype=torch.bool)
        return rows, torch.arange(self.steps)[:, None] < self.lengths

    def part(self, first: int, last: int) -> Rows:
        """Steps first … last − 1, in the same matrix."""
        lengths = None if self.lengths is None else self.lengths - first
        return replace(self, starts=self.starts[first:last], lengths=lengths)

    def compact(self) -> Rows:
        """The same steps in a matrix of their own, time first."""
        cut = None
        if self.cut is not None:
            rows, there = self.index()
            cut = (self.cut[rows * there] & there).flatten()
        starts = torch.arange(self.steps) * self.batch
        return replace(self, starts=starts, row_step=1, cut=cut)
