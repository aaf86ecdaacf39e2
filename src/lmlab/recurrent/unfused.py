"""The same layer as `fused`, step by step in torch operations: where no kernel of ours may run.

That is on an accelerator with resets, in half precision, inside torch.func, and for second derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.recurrent.rows import Rows

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def unfused(
    kind: str, diagonal: bool, rows: Rows, x: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Arguments and result of `fused`."""
    w_ih, w_hh, b_ih, b_hh = weights
    u = torch.nn.functional.linear(x, w_ih, b_ih)
    index, there = rows.index()
    where, outputs = [], []
    steps = range(rows.steps)
    for t in reversed(steps) if rows.reverse else steps:
        whole = bool(there[t].all())
        present = there[t].nonzero()[:, 0].to(x.device)
        row = index[t][there[t]].to(x.device)
        before = state if whole else tuple(part[present] for part in state)
        if rows.cut is not None:
            goes_on = ~rows.cut.to(x.device)[row, None]
            before = tuple(torch.where(goes_on, part, torch.zeros_like(part)) for part in before)
        after = step(kind, before, u[row], w_hh, b_hh, diagonal)
        if whole:
            state = after
        else:
            state = tuple(
                old.index_copy(0, present, new.to(old.dtype)) for old, new in zip(state, after, strict=True)
            )
        where.append(row)
        outputs.append(after[0])
    y = torch.cat(outputs)
    return y.new_zeros(x.shape[0], y.shape[1]).index_copy(0, torch.cat(where), y), state


def step(
    kind: str,
    state: tuple[Tensor, ...],
    u: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    diagonal: bool,
) -> tuple[Tensor, ...]:
    """One step of a cell in torch's gate order; state (h,) or (h, c), each [… n]; u: projections [… gates·n]."""
    h = state[0]
    if diagonal:
        g = w_hh * h.repeat(*(1,) * (h.ndim - 1), w_hh.shape[0] // h.shape[-1])
        g = g if b_hh is None else g + b_hh
    else:
        g = torch.nn.functional.linear(h, w_hh, b_hh)
    if kind == "RNN_TANH":
        return (torch.tanh(u + g),)
    if kind == "RNN_RELU":
        return (torch.relu(u + g),)
    if kind == "GRU":
        (u_r, u_z, u_n), (g_r, g_z, g_n) = u.chunk(3, -1), g.chunk(3, -1)
        r, z = torch.sigmoid(u_r + g_r), torch.sigmoid(u_z + g_z)
        m = torch.tanh(u_n + r * g_n)
        return (m + z * (h - m),)
    i, f, m, o = (u + g).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(m)
    return torch.sigmoid(o) * torch.tanh(c), c
