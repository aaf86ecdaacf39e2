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
# Numbers of cost rows are rounded up to a multiple of this.
_STEP = 16


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
    index_at: list[int]
    """The index at the first and after the last token of each chunk of `rows`."""

    def chunks(self) -> Iterator[Chunk]:
        """Tokens with equal targets share a cost row, so they are neighbours in `order`.

        All chunks have one length, or one less: libraries prepare a matrix product for each shape they meet,
        and keep what they prepared. A word at the end of the cost rows may be made again for the next ones.
        """
        cut = list(pieces(0, len(self.order), self.rows))
        if self.words is None or self.index is None:
            for start, stop in cut:
                yield Chunk(start, stop, None, None)
            return
        low = high = 0  # the words whose costs there are
        for chunk, (start, stop) in enumerate(cut):
            words: Tensor | None = None
            first, last = self.index_at[2 * chunk], self.index_at[2 * chunk + 1] + 1
            if last > high:
                low, high = first, last
                for after in self.index_at[2 * chunk + 3 :: 2]:  # and those of as many chunks as fit
                    if after + 1 - low > self.cost_rows:
                        break
                    high = after + 1
                words = _filled(self.words[low:high], self.cost_rows)
            yield Chunk(start, stop, words, self.index[start:stop] - low)


def _filled(words: Tensor, most: int) -> Tensor:
    """Some words more, so that few numbers of words occur: of one shape is what matrix products like."""
    size = min(most, -(-len(words) // _STEP) * _STEP)
    return torch.cat([words, words[-1:].expand(size - len(words))])


def make_plan(
    target: Tensor, kept: Tensor, row_bytes: int, view: CostView | None, cost_bytes: int, budget: int
) -> Plan:
    """Plan for the tokens `kept` of target [n]. row_bytes, cost_bytes: of a row of logits, of costs."""
    order, words, index, index_at, cost_rows = kept, None, None, [], 0
    table = view is not None and view.kind != "zero_one"
    share = budget // (2 if table else 1)
    rows = rows_within(share, row_bytes, len(order))
    if table:
        order = kept[target[kept].argsort(stable=True)]
        words, index = torch.unique_consecutive(target[order], return_inverse=True)
        cost_rows = rows_within(share, cost_bytes, len(words))
        rows = min(rows, cost_rows) if len(words) > cost_rows else rows  # a chunk's words must fit
        edges = [edge for start, stop in pieces(0, len(order), rows) for edge in (start, stop - 1)]
        index_at = index[torch.tensor(edges, dtype=torch.int64, device=index.device)].tolist()
    if rows < min(_FEW_ROWS, len(order)):
        warnings.warn(
            f"budget={budget} bytes holds {rows} rows of logits, and so few make slow matmuls; "
            f"{_FEW_ROWS} rows need budget={_FEW_ROWS * row_bytes * (2 if table else 1)}",
            stacklevel=2,
        )
    return Plan(order, target[order], rows, cost_rows, words, index, index_at)


def rows_within(budget: int, row_bytes: int, most: int) -> int:
    """How many rows a buffer within the budget has: at least one, at most `most`, no more than pay."""
    enough = max(_ENOUGH, 3 * _FEW_ROWS * row_bytes)
    if budget > _ENOUGH:
        budget -= budget // 4  # of a large budget, what matrix products set aside for themselves
    return max(1, min(min(budget, enough) // row_bytes, most))


def pieces(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut [start, stop) into the fewest pieces of at most `most`, as equal as they can be."""
    count = -(-(stop - start) // most)
    for piece in range(count):
        yield start + (stop - start) * piece // count, start + (stop - start) * (piece + 1) // count
