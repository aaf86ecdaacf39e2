"""Multiple shooting: chunks of time run side by side as one batch; only the states between them are iterated."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from lmlab.recurrent.cells import TorchCell
from lmlab.recurrent.problem import sequential
from lmlab.recurrent.sweeps import Attempt, Window, residual

BURN_IN = 48
STEPS_A_CHUNK = 256
MOST_CHUNKS = 512
CACHE = 2**20
"""Bytes of states that a pass should hold."""
WORTH = 1.3
"""How much faster than step by step a pass must promise to be."""


def chunks_of(batch: int, steps: int, n: int, itemsize: int) -> int:
    """How many chunks: one for 256 steps, fewer where their states would not stay in the cache."""
    chunks = min(max(steps // STEPS_A_CHUNK, 1), MOST_CHUNKS)
    while chunks > 1 and batch * chunks * n * itemsize > CACHE:
        chunks //= 2
    return chunks


def shooting(window: Window, tol: float, max_iter: int) -> Attempt:
    """Passes over the chunks that begin with a state which the chunk before does not end with.

    The first states come from a run over the 48 steps before each chunk; after k passes the first k chunks are
    exact.
    """
    b, t, m = window.u.shape
    n = window.carry.shape[1]
    chunks = chunks_of(b, t, n, window.carry.element_size())
    size = -(-t // chunks)
    chunks = -(-t // size)
    first = torch.arange(chunks) * size
    starts = torch.cat([window.carry[:, None], _burn_in(window, first[1:])], 1)
    states = window.carry.new_empty(0)
    moved = torch.ones(b, chunks, dtype=torch.bool)
    passes, rho = 0, starts.new_zeros(b, chunks)
    while bool(moved.any()) and passes < max_iter:
        if passes == 0 and isinstance(window.cell, TorchCell) and window.cell.runs(window.u):
            states = _run_all(window, starts, size)
        else:
            states = states if passes else window.carry.new_empty(b, t, n)
            _run(window, states, starts, moved, size)
        passes += 1
        ends = states[:, first[1:] - 1]
        rho = starts.new_zeros(b, chunks)
        if chunks > 1:
            goes_on = Window(window.cell, window.u[:, first[1:]], window.carry, _at(window.reset, first[1:]))
            new = _step(goes_on, ends)
            rho[:, 1:] = residual(states[:, first[1:]], new)
        moved = rho > tol
        starts = torch.where(moved[..., None], torch.cat([starts[:, :1], ends], 1), starts)
        if not bool(torch.isfinite(starts).all()):
            break
    whole = states.new_zeros(b, t)
    whole[:, first] = rho
    return Attempt(states, whole, passes)


def promises(window: Window, seconds_a_step: float) -> bool:
    """Whether passes over chunks beat steps: a part of one pass is measured beside the time of one step."""
    b, t, _ = window.u.shape
    n = window.carry.shape[1]
    chunks = chunks_of(b, t, n, window.carry.element_size())
    if chunks == 1:
        return False
    h = window.carry[:, None].expand(b, chunks, n).reshape(-1, n)
    u = window.u[:, :1].expand(b, chunks, -1).reshape(b * chunks, -1)
    count = max(2, t // chunks // 50)
    window.cell.step(h, u)
    begin = time.perf_counter()
    for _ in range(count):
        h = window.cell.step(h, u)
    seconds = (time.perf_counter() - begin) / count
    passes = 3  # two that move boundaries, and the burn-in with the steps that are compared
    return t * seconds_a_step > WORTH * passes * (t / chunks) * seconds


def _burn_in(window: Window, first: Tensor) -> Tensor:
    """A guess of the state before each step of `first`: the run over the steps before it, from zero."""
    b, n = window.carry.shape
    count = len(first)
    at = (first[:, None] - BURN_IN + torch.arange(BURN_IN)).clamp(min=0)  # [chunks burn-in]
    reset = None if window.reset is None else window.reset[:, at].flatten(0, 1)
    zero = window.carry.new_zeros(b * count, n)
    return sequential(window.cell, window.u[:, at].flatten(0, 1), zero, reset)[:, -1].view(b, count, n)


def _run(window: Window, states: Tensor, starts: Tensor, moved: Tensor, size: int) -> None:
    """Runs the chunks that `moved` names, all as one batch, and writes their states."""
    row, chunk = moved.nonzero(as_tuple=True)
    h = starts[row, chunk]
    t = states.shape[1]
    if isinstance(window.cell, TorchCell) and window.cell.runs(window.u):
        at = chunk[:, None] * size + torch.arange(size)  # steps past the end are run and dropped
        inside, at = at < t, at.clamp(max=t - 1)
        reset = None if window.reset is None else window.reset[row[:, None], at]
        found = sequential(window.cell, window.u[row[:, None], at], h, reset)
        states[row[:, None].expand_as(at)[inside], at[inside]] = found[inside]
        return
    for k in range(size):
        at = chunk * size + k
        inside = at < t
        if not bool(inside.all()):
            row, chunk, at, h = row[inside], chunk[inside], at[inside], h[inside]
            if not len(at):
                break
        if window.reset is not None:
            h = torch.where(window.reset[row, at, None], torch.zeros_like(h), h)
        h = window.cell.step(h, window.u[row, at])
        states[row, at] = h


def _run_all(window: Window, starts: Tensor, size: int) -> Tensor:
    """Every chunk, by the compiled loop on views of the steps; a last, shorter chunk by itself."""
    b, _, n = starts.shape
    t = window.u.shape[1]
    whole = t // size
    pieces = []
    for first, count, length in ((0, whole, size), (whole * size, 1, t - whole * size)):
        if not length:
            continue
        part = slice(first, first + count * length)
        u = window.u[:, part].reshape(b * count, length, -1)
        reset = None if window.reset is None else window.reset[:, part].reshape(b * count, length)
        h = starts[:, first // size : first // size + count].reshape(b * count, n)
        pieces.append(sequential(window.cell, u, h, reset).view(b, count * length, n))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def _step(window: Window, h: Tensor) -> Tensor:
    if window.reset is not None:
        h = torch.where(window.reset[..., None], torch.zeros_like(h), h)
    new: Tensor = window.cell.step(h, window.u)
    return new


def _at(reset: Tensor | None, steps: Any) -> Tensor | None:
    return None if reset is None else reset[:, steps]
