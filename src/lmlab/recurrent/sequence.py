"""What the modules share: batches in any layout, checks of resets and lengths, layers above layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lmlab.recurrent.rows import Rows
from lmlab.recurrent.unfused import Weights

Layer = Callable[[Rows, Tensor, tuple[Tensor, ...], Weights], tuple[Tensor, tuple[Tensor, ...]]]
"""(rows, x, state before, weights) -> (outputs, state after): one direction of one layer."""


@dataclass(frozen=True)
class Batch:
    """One input of a module as a matrix of rows, and the way back."""

    x: Tensor
    """[rows, m]"""
    forward: Rows
    backward: Rows
    shape: tuple[int, ...]
    """Of the input without its last axis."""
    batch_first: bool
    packed: PackedSequence | None = None

    def give_back(self, y: Tensor) -> Tensor | PackedSequence:
        if self.packed is not None:
            p = self.packed
            return PackedSequence(y, p.batch_sizes, p.sorted_indices, p.unsorted_indices)
        return y.view(*self.shape, y.shape[1])


def read_batch(
    given: Tensor | PackedSequence, reset: Tensor | None, lengths: Tensor | None, batch_first: bool
) -> Batch:
    """The layout of a checked input: a PackedSequence, [b t m] or [t b m], or [t m]."""
    if isinstance(given, PackedSequence):
        rows = _packed_rows(given, reset, lengths)
        return Batch(given.data.contiguous(), rows, replace(rows, reverse=True), (), False, given)
    shape = tuple(given.shape[:-1])
    whole = (1, *shape) if len(shape) == 1 and batch_first else (*shape, 1) if len(shape) == 1 else shape
    batch, steps = whole if batch_first else whole[::-1]
    check_lengths(lengths, batch, steps)
    check_reset(reset, shape)
    starts = torch.arange(steps) if batch_first else torch.arange(steps) * batch
    end = None if lengths is None else lengths.to("cpu", torch.int64)
    rows, backward = (
        Rows(batch, starts, steps if batch_first else 1, end, reverse=flag) for flag in (False, True)
    )
    if reset is not None:
        cuts = reset.reshape(whole).cpu() if batch_first else reset.reshape(whole).T.cpu()
        later = _backward_cuts(cuts, end)
        rows = replace(rows, cut=(cuts if batch_first else cuts.T).flatten())
        backward = replace(backward, cut=(later if batch_first else later.T).flatten())
    return Batch(given.reshape(-1, given.shape[-1]).contiguous(), rows, backward, shape, batch_first)


def _backward_cuts(cuts: Tensor, lengths: Tensor | None) -> Tensor:
    """Backwards in time a sequence begins at the step before a reset; cuts [b t]."""
    later = torch.zeros_like(cuts)
    later[:, :-1] = cuts[:, 1:]
    if lengths is not None:  # the end of a sequence isn't a cut: the given state enters there
        later &= torch.arange(1, cuts.shape[1] + 1) < lengths[:, None]
    return later


def _packed_rows(packed: PackedSequence, reset: Tensor | None, lengths: Tensor | None) -> Rows:
    if reset is not None or lengths is not None:
        raise ValueError(
            "a PackedSequence brings its own lengths and takes no reset: unpack it first, "
            "x, lengths = pad_packed_sequence(packed); module(x, lengths=lengths, reset=…)"
        )
    sizes = packed.batch_sizes
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    batch = int(sizes[0])
    return Rows(batch, starts, 1, (sizes[:, None] > torch.arange(batch)).sum(0))


def check_reset(reset: Tensor | None, shape: tuple[int, ...]) -> None:
    if reset is None:
        return
    if reset.dtype != torch.bool:
        raise TypeError(f"reset must be bool, True where a new sequence starts, got {reset.dtype}")
    if tuple(reset.shape) != shape:
        raise ValueError(f"reset must be {shape}, as the first axes of input, got {tuple(reset.shape)}")


def check_lengths(lengths: Tensor | None, batch: int, steps: int) -> None:
    if lengths is None:
        return
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"lengths must be [b] = {(batch,)}, got {tuple(lengths.shape)}")
    wrong = (lengths < 1) | (lengths > steps)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"lengths must lie in 1 … {steps}, the steps of input; lengths[{at}] is {int(lengths[at])}"
        )


def run_layers(
    layer: Layer,
    batch: Batch,
    state: tuple[Tensor, ...],
    weights: Sequence[Weights],
    *,
    directions: int,
    dropout: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Layers above layers. state: parts [layers·directions b n]; weights in the same order.

    dropout: of the outputs between layers; 0 outside training.
    """
    x, after = batch.x, []
    for first in range(0, len(weights), directions):
        if dropout and first:
            x = _drop(x, batch, dropout)
        outputs = []
        for i in range(first, first + directions):
            rows = batch.backward if i > first else batch.forward
            y, end = layer(rows, x, tuple(part[i] for part in state), weights[i])
            outputs.append(y)
            after.append(end)
        x = outputs[0] if directions == 1 else torch.cat(outputs, 1)
    return x, tuple(torch.stack(part) for part in zip(*after, strict=True))


def _drop(x: Tensor, batch: Batch, p: float) -> Tensor:
    """Dropout in torch.nn's own order, time first, so that the same seed drops the same numbers."""
    if not batch.batch_first or batch.packed is not None:
        return torch.nn.functional.dropout(x, p)
    b, t = batch.forward.batch, batch.forward.steps
    time_first = x.view(b, t, -1).transpose(0, 1).contiguous()
    return torch.nn.functional.dropout(time_first, p).transpose(0, 1).reshape(x.shape)
