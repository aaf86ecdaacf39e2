"""Kernels for an accelerator: the diagonal scan, and Newton's method for diagonal cells, window after window.

Written in Triton and imported only where it is installed. They were tested in Triton's interpreter; their speed
on a GPU is not measured.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

STEPS, CHANNELS = 64, 32
"""Steps of a chunk and channels of a program."""
TANH, RELU, GRU = 0, 1, 2


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _join(a1, b1, a2, b2):  # type: ignore[no-untyped-def]
    """(a₂, b₂)∘(a₁, b₁) = (a₂a₁, a₂b₁ + b₂)"""
    return a2 * a1, a2 * b1 + b2


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _scan_kernel(a, b, h0, h, t, n, REVERSE: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program: a sequence and a block of channels; chunks of steps in registers, the state carried over."""
    row, block = tl.program_id(0), tl.program_id(1)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < n
    carry = tl.load(h0 + row * n + channel, mask=inside, other=0.0)
    k = tl.arange(0, STEPS)
    for first in range(0, t, STEPS):
        s = first + k
        step = t - 1 - s if REVERSE else s
        at = (row * t + step)[:, None] * n + channel[None, :]
        mask = (s < t)[:, None] & inside[None, :]
        x = tl.load(a + at, mask=mask, other=1.0)  # behind the last step the state stands still
        y = tl.load(b + at, mask=mask, other=0.0)
        product, total = tl.associative_scan((x, y), 0, _join)
        state = product * carry[None, :] + total
        tl.store(h + at, state, mask=mask)
        carry = tl.sum(tl.where((k == STEPS - 1)[:, None], state, 0.0), 0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _tanh(x):  # type: ignore[no-untyped-def]
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _newton_kernel(  # type: ignore[no-untyped-def]
    u, w, bias, h0, reset, h, sweeps, rho, t, n, tol, most,
    KIND: tl.constexpr, GATES: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """u is read once and h written once for each window; `rho` takes the largest residual, `sweeps` the most."""
    row, block = tl.program_id(0), tl.program_id(1)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < n
    carry = tl.load(h0 + row * n + channel, mask=inside, other=0.0)
    k = tl.arange(0, STEPS)
    w0 = tl.load(w + channel, mask=inside, other=0.0)[None, :]
    b0 = tl.load(bias + channel, mask=inside, other=0.0)[None, :]
    w1, w2, b1, b2 = w0, w0, b0, b0
    if GATES == 3:
        w1 = tl.load(w + n + channel, mask=inside, other=0.0)[None, :]
        w2 = tl.load(w + 2 * n + channel, mask=inside, other=0.0)[None, :]
        b1 = tl.load(bias + n + channel, mask=inside, other=0.0)[None, :]
        b2 = tl.load(bias + 2 * n + channel, mask=inside, other=0.0)[None, :]
    count_most = 0
    rho_most = 0.0
    for first in range(0, t, STEPS):
        s = first + k
        mask = (s < t)[:, None] & inside[None, :]
        at = (row * t + s)[:, None] * (GATES * n) + channel[None, :]
        u0 = tl.load(u + at, mask=mask, other=0.0)
        u1, u2 = u0, u0
        if GATES == 3:
            u1 = tl.load(u + at + n, mask=mask, other=0.0)
            u2 = tl.load(u + at + 2 * n, mask=mask, other=0.0)
        goes_on = 1.0 - tl.load(reset + row * t + s, mask=s < t, other=1).to(tl.float32)[:, None]
        before = goes_on * carry[None, :]
        state = before
        residual = tol + 1.0
        count = 0
        while (residual > tol) & (count <= most):
            if GATES == 3:
                r = tl.sigmoid(u0 + b0 + w0 * before)
                z = tl.sigmoid(u1 + b1 + w1 * before)
                q = w2 * before + b2
                m = _tanh(u2 + r * q)
                f = m + z * (before - m)
                dm = (1.0 - z) * (1.0 - m * m)
                j = z + dm * r * (w2 + q * (1.0 - r) * w0) + (before - m) * z * (1.0 - z) * w1
            elif KIND == 0:
                f = _tanh(u0 + b0 + w0 * before)
                j = (1.0 - f * f) * w0
            else:
                f = tl.maximum(u0 + b0 + w0 * before, 0.0)
                j = tl.where(f > 0, w0 + 0.0 * f, 0.0)
            if count == 0:
                state = f  # the first guess: f(carry, u)
            else:
                worst = tl.where(mask, tl.abs(state - f) / (1.0 + tl.abs(state)), 0.0)
                residual = tl.max(tl.max(worst, 1), 0)
                if residual > tol:
                    a = j * goes_on
                    product, total = tl.associative_scan((a, f - j * before), 0, _join)
                    state = product * carry[None, :] + total
            # the state one step earlier: by the strictly lower part of a scan that keeps the last element
            last = tl.where((k == 0)[:, None], carry[None, :], 0.0)
            shift = tl.sum(tl.where((k[:, None] == k[None, :] + 1)[:, :, None], state[None, :, :], 0.0), 1)
            before = goes_on * (shift + last)
            count += 1
        tl.store(h + (row * t + s)[:, None] * n + channel[None, :], state, mask=mask)
        end = tl.minimum(t - 1 - first, STEPS - 1)
        carry = tl.sum(tl.where((k == end)[:, None], state, 0.0), 0)
        count_most = tl.maximum(count_most, count - 2)
        rho_most = tl.maximum(rho_most, residual)
    place = row * tl.num_programs(1) + block
    tl.store(sweeps + place, count_most)
    tl.store(rho + place, rho_most)


def triton_scan(
    a: Float[Tensor, "b t n"],
    b: Float[Tensor, "b t n"],
    h0: Float[Tensor, "b n"] | None = None,
    *,
    reverse: bool = False,
) -> Float[Tensor, "b t n"]:
    """`linear_scan` for a diagonal float32 recurrence, outside the graph; any t."""
    batch, t, n = b.shape
    a, b = a.expand(b.shape).contiguous(), b.contiguous()
    start = b.new_zeros(batch, n) if h0 is None else h0.contiguous()
    h = torch.empty_like(b)
    grid = (batch, triton.cdiv(n, CHANNELS))
    _scan_kernel[grid](a, b, start, h, t, n, REVERSE=reverse, STEPS=STEPS, CHANNELS=CHANNELS)
    return h


def triton_newton(
    kind: int,
    u: Float[Tensor, "b t g"],
    w: Float[Tensor, " g"],
    bias: Float[Tensor, " g"],
    h0: Float[Tensor, "b n"],
    reset: Bool[Tensor, "b t"],
    *,
    tol: float = 1e-6,
    max_iter: int = 24,
) -> tuple[Tensor, int, float]:
    """States [b t n] of a diagonal RNN (TANH, RELU) or GRU over projections u, most sweeps, largest residual.

    A residual above tol says that a window was not solved: the caller has to go on step by step.
    """
    batch, t, _ = u.shape
    n = h0.shape[1]
    channels = 8  # the shift by one step is a product over STEPS x STEPS x channels
    grid = (batch, triton.cdiv(n, channels))
    h = u.new_empty(batch, t, n)
    sweeps = torch.zeros(grid, dtype=torch.int32, device=u.device)
    rho = torch.zeros(grid, dtype=torch.float32, device=u.device)
    options: dict[str, Any] = {
        "KIND": kind,
        "GATES": 3 if kind == GRU else 1,
        "STEPS": 32,
        "CHANNELS": channels,
    }
    _newton_kernel[grid](
        u.contiguous(), w.contiguous(), bias.contiguous(), h0.contiguous(), reset.to(torch.int8).contiguous(),
        h, sweeps, rho, t, n, tol, max_iter, **options,
    )  # fmt: skip
    return h, int(sweeps.max()), float(rho.max())
