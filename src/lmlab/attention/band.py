"""Which rotated copies of q and k a pair (i, j) meets in.

Every band method is attention in which the logits of different regions of the T × T square come from
differently rotated copies ("parts") of the same queries and keys. `Band` is that map; it knows no rotation.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lmlab.rope import DCA, Extension, Window
from lmlab.rope.band import BandMethod, SplitMethod


@dataclass(frozen=True)
class Band:
    """The regions, with r = i − j ≥ 0.

    "plain": one part. "window": part 0 where r < window; nothing else, or part 1 where j < sinks.
    "split": part 0 where r < window, else part 1. "chunks": part min(A, 2), A the number of chunks (of `step`
    keys) between i and j.
    """

    kind: Literal["plain", "window", "split", "chunks"] = "plain"
    window: int = 0
    sinks: int = 0
    step: int = 1

    @property
    def parts(self) -> int:
        return {"plain": 1, "window": 1 + (self.sinks > 0), "split": 2, "chunks": 3}[self.kind]

    def select(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """The part of each pair and whether it is kept, for int64 i [… t 1] and j [T]."""
        r = i - j
        causal = r >= 0
        if self.kind == "plain":
            return torch.zeros_like(r), causal
        if self.kind == "chunks":
            return (i // self.step - j // self.step).clamp(max=2), causal
        far = r >= self.window
        if self.kind == "window":
            return far.long(), causal & (~far | (j < self.sinks))
        return far.long(), causal

    def columns(self, part: int, first: int, last: int, keys: int) -> tuple[int, int]:
        """Half-open range of keys outside which no row of first … last uses this part."""
        end = min(last + 1, keys)
        if self.kind == "plain":
            return 0, end
        if self.kind == "chunks":
            low, high = first // self.step, last // self.step
            start, stop = ((low, high + 1), (low - 1, high), (0, high - 1))[part]
            return max(0, start * self.step), max(0, min(end, stop * self.step))
        if part == 0:
            return max(0, first - self.window + 1), end
        far_end = max(0, min(end, last - self.window + 1))
        return 0, min(far_end, self.sinks) if self.kind == "window" else far_end


def band_of(extension: Extension, keys: int) -> tuple[BandMethod | None, Band]:
    """The band method that matters at this many keys, and its regions: none where all distances are near."""
    method = extension.find(BandMethod)
    match method:
        case Window(window=window, sinks=sinks) if keys > window:
            return method, Band("window", window=window, sinks=sinks)
        case SplitMethod(window=window) if keys > window:
            return method, Band("split", window=window)
        case DCA() if keys > method.step:
            return method, Band("chunks", step=method.step)
    return None, Band()
