"""Gradients that can't be differentiated again, and say so when it is tried."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


def differentiable_once(backward: Backward) -> Backward:
    """For the backward of an autograd function whose gradients are constants to autograd.

    torch's `once_differentiable` only speaks up if the incoming gradient needs a gradient itself. That of a
    plain loss doesn't, and a penalty on our gradients would be left out in silence.
    """

    @functools.wraps(backward)
    def guarded(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            made = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return made
        anchor = torch.zeros((), requires_grad=True)
        return tuple(None if g is None else _Refuse.apply(anchor, g) for g in made)

    return guarded


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "losses of lmlab can be differentiated once: for derivatives of their gradients, use torch's losses"
        )
