"""Linear recurrences h_t = a_t h_{t-1} + b_t, differentiable any number of times."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor

from lmlab.recurrent.kernels import kernels, raw
from lmlab.recurrent.logdepth import log_depth_scan
from lmlab.recurrent.precision import HALF, autocast_is_on, in_common_type, off

_NATIVE = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def linear_scan(
    a: Inexact[Tensor, "*coefficients"],
    b: Inexact[Tensor, "b t n"],
    h0: Inexact[Tensor, "b n"] | None = None,
    *,
    reverse: bool = False,
) -> Inexact[Tensor, "b t n"]:
    """All states of the linear recurrence h_t = a_t h_{t-1} + b_t.

    a: [b t n], elementwise, or [b t n n], matrices; its axes of size 1 are broadcast. b: [b t n].
    h0: the state before the first step, [b n]; None is zero.
    reverse: h_t = a_t h_{t+1} + b_t, and h0 stands after the last step.
    float32, float64, complex64 and complex128; float16 and bfloat16 are summed in float32 and given back in
    their own type. Under autocast arguments of different types are brought to the widest.
    On a CPU one compiled pass over t; elsewhere steps are joined in pairs (logarithmic depth).
    Raises ValueError for shapes, TypeError for types and devices that don't fit.
    """
    if autocast_is_on(b):
        with off(b.device.type):
            return linear_scan(*in_common_type(a, b, h0), reverse=reverse)
    _check(a, b, h0)
    if b.dtype in HALF:
        wide = linear_scan(a.float(), b.float(), None if h0 is None else h0.float(), reverse=reverse)
        return wide.to(b.dtype)
    if b.numel() == 0:
        return _empty(a, b, h0)
    return _scan(a, b, h0, reverse)


def _scan(a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool) -> Tensor:
    if b.device.type == "cpu":
        h: Tensor = _Scan.apply(a, b, h0, reverse)
        return h
    return _elsewhere(a, b, h0, reverse)


def _elsewhere(a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool) -> Tensor:
    """By Triton where no gradient is asked for, else by torch operations."""
    if (
        not torch.is_grad_enabled()
        and b.is_cuda
        and b.dtype == torch.float32
        and a.ndim == 3
        and find_spec("triton")
    ):
        from lmlab.recurrent.triton_scan import triton_scan

        states: Tensor = triton_scan(a, b, h0, reverse=reverse)
        return states
    a = a.expand(*b.shape, *a.shape[3:])
    if a.ndim == 4:
        a = a.expand(*b.shape, b.shape[2])
    if reverse:
        a, b = a.flip(1), b.flip(1)
    if h0 is not None:
        first = a[:, 0] * h0 if a.ndim == 3 else (a[:, 0] @ h0[..., None])[..., 0]
        b = torch.cat([b[:, :1] + first[:, None], b[:, 1:]], 1)
    h = log_depth_scan(a, b)
    return h.flip(1) if reverse else h


def _empty(a: Tensor, b: Tensor, h0: Tensor | None) -> Tensor:
    """The empty result, tied to its inputs, so that their gradients are zeros."""
    tie = a.sum() * 0 + (0 if h0 is None else h0.sum() * 0)
    return b + torch.nan_to_num(tie)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool) -> Tensor:
        h = b.new_empty(b.shape)
        dense = a.ndim == 4
        kernels(b).scan(
            _numbers(_wide(a, b)),
            _numbers(b),
            None if h0 is None else _numbers(h0),
            _numbers(h),
            dense,
            reverse,
            b.is_complex(),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(a, h0, h)
        ctx.reverse = reverse
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        a, h0, h = ctx.saved_tensors
        needs_a, _, needs_h0, _ = ctx.needs_input_grad
        da: Tensor | None
        dh0: Tensor | None
        if torch.is_grad_enabled():
            with off("cpu"):
                da, db, dh0 = _differentiable_gradient(a, h0, h, dh, ctx.reverse)
        else:
            shape = h.shape if a.ndim == 3 else (*h.shape, h.shape[2])
            da = dh.new_empty(shape) if needs_a else None
            db, dh0 = dh.new_empty(h.shape), dh.new_empty(h.shape[0], h.shape[2]) if needs_h0 else None
            kernels(h).scan_gradient(
                _numbers(_wide(a, h)),
                _numbers(dh),
                None if h0 is None else _numbers(h0),
                _numbers(h),
                None if da is None else _numbers(da),
                _numbers(db),
                None if dh0 is None else _numbers(dh0),
                a.ndim == 4,
                ctx.reverse,
                h.is_complex(),
                torch.get_num_threads(),
            )
        return (
            None if da is None or not needs_a else da.sum_to_size(a.shape),
            db,
            dh0 if needs_h0 else None,
            None,
        )


def _differentiable_gradient(
    a: Tensor, h0: Tensor | None, h: Tensor, dh: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """λ_t = g_t + a*_{t+1} λ_{t+1}, itself a scan; ∂b = λ, ∂a_t = λ_t h*_{t-1}, ∂h_0 = a*_1 λ_1."""
    dense = a.ndim == 4
    adjoint = (a.mH if dense else a.conj()).expand(-1, h.shape[1], *(-1,) * (a.ndim - 2))
    start = torch.zeros_like(h[:, :1]) if h0 is None else h0[:, None]
    if reverse:
        coefficients = torch.cat([adjoint[:, :1], adjoint[:, :-1]], 1)
        before, first = torch.cat([h[:, 1:], start], 1), -1
    else:
        coefficients = torch.cat([adjoint[:, 1:], adjoint[:, -1:]], 1)
        before, first = torch.cat([start, h[:, :-1]], 1), 0
    lam = _scan(coefficients, dh, None, not reverse)
    if dense:
        da = lam[..., :, None] * before.conj()[..., None, :]
        dh0 = (adjoint[:, first] @ lam[:, first, :, None])[..., 0]
    else:
        da, dh0 = lam * before.conj(), adjoint[:, first] * lam[:, first]
    return da, lam, dh0


def _wide(a: Tensor, b: Tensor) -> Tensor:
    """a with the axes of b; what is broadcast gets a stride of 0, no memory."""
    return a.expand(b.shape) if a.ndim == 3 else a.expand(*b.shape, b.shape[2])


def _numbers(x: Tensor) -> Any:
    """The tensor as the kernel reads it, in a capsule: a complex one through pairs of numbers."""
    if x.is_complex():
        x = torch.view_as_real(x.detach().resolve_neg().resolve_conj())
    return raw(x.detach().resolve_neg())


def _check(a: Tensor, b: Tensor, h0: Tensor | None) -> None:
    if b.ndim != 3:
        raise ValueError(f"b must be [b t n], got the shape {tuple(b.shape)}")
    if a.ndim not in (3, 4):
        raise ValueError(
            f"a must be [b t n] (elementwise) or [b t n n] (matrices) for b {tuple(b.shape)}, got {tuple(a.shape)}"
        )
    wanted = (*b.shape, b.shape[2]) if a.ndim == 4 else tuple(b.shape)
    if any(given not in (1, want) for given, want in zip(a.shape, wanted, strict=True)):
        raise ValueError(f"a must be {wanted}, or 1 where it is broadcast, to fit b; got {tuple(a.shape)}")
    if h0 is not None and h0.shape != (b.shape[0], b.shape[2]):
        raise ValueError(f"h0 must be [b n] = {(b.shape[0], b.shape[2])} to fit b, got {tuple(h0.shape)}")
    for name, x in (("a", a), ("h0", h0)):
        if x is None:
            continue
        if x.dtype != b.dtype:
            raise TypeError(f"{name} is {x.dtype}, b is {b.dtype}: give both one type, {name}.to(b.dtype)")
        if x.device != b.device:
            raise TypeError(f"{name} is on {x.device}, b on {b.device}: give both one device")
    if b.dtype not in (*_NATIVE, *HALF):
        raise TypeError(f"b must be a floating or complex tensor, got {b.dtype}: b.float()")
