"""How the tokens of a call are cut into chunks, so that logits and cost rows fit a budget of bytes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.losses.cost import CostView

# Buffers beyond this many bytes buy nothing: they no longer stay in the cache between the matmul and the
# visit of the rows, and every call has to get their pages from the system again.
_ENOUGH = 16 * 2**20
# Fewer rows than this make a matmul wait for memory.
_FEW_ROWS = 64


@dataclass(frozen=True)
class Chunk:
    """Tokens order[start:stop]; `words`: whose cost rows are to be made before (None: those there are)."""

    start: int
    stop: int
    words: Tensor | None
    index: Tensor | None


@dataclass(frozen=True)
class Plan:
    """Kept tokens in the order in which they are visited, and how many rows each buffer has."""

    order: Tensor
    target: Tensor
    rows: int
    cost_rows: int
    words: Tensor | None
    index: Tensor | None
    first: list[int]

    def chunks(self) -> Iterator[Chunk]:
        """Tokens with equal targets share a cost row, so they are neighbours in `order`."""
        if self.words is None or self.index is None:
            for start, stop in pieces(0, len(self.order), self.rows):
                yield Chunk(start, stop, None, None)
            return
        for low, high in pieces(0, len(self.words), self.cost_rows):
            words: Tensor | None = self.words[low:high]
            for start, stop in pieces(self.first[low], self.first[high], self.rows):
                yield Chunk(start, stop, words, self.index[start:stop] - low)
                words = None


def make_plan(
    target: Tensor, kept: Tensor, row_bytes: int, view: CostView | None, cost_bytes: int, budget: int
) -> Plan:
    """Plan for the tokens `kept` of target [n]. row_bytes, cost_bytes: of a row of logits, of costs."""
    order, words, index, first = kept, None, None, []
    table = view is not None and view.kind != "zero_one"
    if table:
        order = kept[target[kept].argsort(stable=True)]
        words, index, counts = torch.unique_consecutive(
            target[order], return_inverse=True, return_counts=True
        )
        first = [0, *counts.cumsum(0).tolist()]
    share = budget // (2 if table else 1)
    rows = rows_within(share, row_bytes, len(order))
    cost_rows = rows_within(share, cost_bytes, len(words)) if words is not None else 0
    if rows < min(_FEW_ROWS, len(order)):
        warnings.warn(
            f"budget={budget} bytes holds {rows} rows of logits, and so few make slow matmuls; "
            f"{_FEW_ROWS} rows need budget={_FEW_ROWS * row_bytes * (2 if table else 1)}",
            stacklevel=2,
        )
    return Plan(order, target[order], rows, cost_rows, words, index, first)


def rows_within(budget: int, row_bytes: int, most: int) -> int:
    """How many rows a buffer within the budget has: at least one, at most `most`, no more than pay."""
    enough = max(_ENOUGH, 3 * _FEW_ROWS * row_bytes)
    return max(1, min(min(budget, enough) // row_bytes, most))


def pieces(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut [start, stop) into the fewest pieces of at most `most`, as equal as they can be."""
    count = -(-(stop - start) // most)
    for piece in range(count):
        yield start + (stop - start) * piece // count, start + (stop - start) * (piece + 1) // count
