"""What the tokens of a call are compared with. The loops over chunks (fused.py, logits.py) ask it for visits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lmlab.losses.cost import Cost, CostView
from lmlab.losses.plan import make_plan
from lmlab.losses.rows import RowCosts, RowOptions, RowResults, sum_dtype
from lmlab.losses.visit import visit_rows


class Visit(Protocol):
    """Visits the rows of one chunk: logits u [.. v] in, statistics kept, du to `out` (None: no gradient).

    scale: factor of the gradient, one for all or one a row. rows: which rows of u and out; None: 0, 1, …
    """

    def __call__(
        self, u: Tensor, out: Tensor | None, *, scale: float | Tensor, rows: Tensor | None
    ) -> None: ...


Chunks = Iterator[tuple[Tensor, Visit]]


@dataclass(frozen=True)
class Labels(ABC):
    """The labels of n tokens, which of them count, and how their losses become one value."""

    shape: torch.Size
    kept: Tensor
    """Numbers of the tokens that count, ascending."""
    cost: Cost | None
    reduction: str
    num_items: int | Tensor | None
    budget: int
    gradient: bool
    """Whether a gradient may be asked for; autograd functions can't see that the caller is under no_grad."""

    def divisor(self) -> float | Tensor:
        """What the sum over tokens is divided by. A tensor on an accelerator isn't read back."""
        if self.reduction != "mean":
            return 1.0
        count = len(self.kept)
        if self.num_items is None:
            return float(max(count, 1))
        if isinstance(self.num_items, Tensor) and self.num_items.device.type != "cpu":
            return self.num_items.clamp(min=1)
        items = float(self.num_items)
        if items <= 0 and count > 0:
            raise ValueError(f"num_items={items:g} must be > 0: {count} tokens of this call are kept")
        return max(items, 1.0)

    def results(self, like: Tensor) -> RowResults:
        """Zeros for each token, of the type in which losses of `like` are summed."""
        return RowResults.zeros(self.shape.numel(), sum_dtype(like), like.device)

    def value(self, results: RowResults, divisor: float | Tensor) -> Tensor:
        """The reduced loss. It is summed in float64, but on accelerators, whose float64 is slow."""
        losses = results.value
        if self.reduction == "none":
            return losses.view(self.shape)
        exact = torch.float64 if losses.device.type == "cpu" else losses.dtype
        return (losses.sum(dtype=exact) / divisor).to(losses.dtype)

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that backward reads again; autograd watches them for changes in place."""

    @abstractmethod
    def chunks(self, v: int, like: Tensor, row_bytes: int, results: RowResults) -> tuple[int, Chunks]:
        """The most tokens of a chunk; and for each chunk its tokens and the visit of their rows.

        like: a tensor of the logits' type and device. row_bytes: what a row of logits takes.
        """


@dataclass(frozen=True)
class HardLabels(Labels):
    """One word a token: target [n]."""

    target: Tensor
    options: RowOptions

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.target,)

    def chunks(self, v: int, like: Tensor, row_bytes: int, results: RowResults) -> tuple[int, Chunks]:
        dtype = sum_dtype(like)
        view = None if self.cost is None else CostView(self.cost)
        plan = make_plan(self.target, self.kept, row_bytes, view, v * dtype.itemsize, self.budget)

        def each() -> Chunks:
            table = like.new_empty(plan.cost_rows, v, dtype=dtype) if plan.words is not None else None
            costs = None
            for chunk in plan.chunks():
                if view is not None:
                    if chunk.words is not None and table is not None:
                        view.rows(chunk.words, table[: len(chunk.words)])
                    costs = RowCosts(table, chunk.index, view.cosines)
                here = slice(chunk.start, chunk.stop)
                tokens = plan.order[here]
                visit = partial(
                    visit_rows,
                    target=plan.target[here],
                    costs=costs,
                    options=self.options,
                    tokens=tokens,
                    results=results,
                )
                yield tokens, visit

        return plan.rows, each()
