"""One pass over a sequence by the native kernels: on a CPU, a few rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab._native import attention as native
from lmlab.attention.vq.sweep import Far, Gradients, Inputs, Plan


def forward(plan: Plan, inputs: Inputs, far: Far) -> tuple[Tensor, Tensor]:
    """Output [b g m t e] and log-sum-exp [b g m t]; `far` moves to the end of the sequence, in place.

    A row that sees no key gives 0 and -inf.
    """
    q, values = inputs.q.contiguous(), inputs.v.contiguous()
    out = values.new_empty(*q.shape[:4], values.shape[-1])
    lse = values.new_empty(q.shape[:4])
    native.forward(
        q=q.detach(),
        q_near=None if inputs.q_near is None else inputs.q_near.detach().contiguous(),
        k_near=None if inputs.k_near is None else inputs.k_near.detach().contiguous(),
        codes=inputs.codes.contiguous(),
        values=values.detach(),
        codebook=inputs.codebook.detach().contiguous(),
        bias=None if inputs.bias is None else inputs.bias.detach().contiguous(),
        count=far.count,
        mean=far.mean,
        out=out,
        lse=lse,
        scale=inputs.scale,
        window=plan.window,
        strict=plan.strict,
        threads=torch.get_num_threads(),
    )
    return out, lse


def backward(
    plan: Plan,
    inputs: Inputs,
    far: Far,
    lse: Tensor,
    grad: Tensor,
    dot: Tensor,
    *,
    hears: tuple[int, int, int] | None,
    codebook: bool,
) -> Gradients:
    """Gradients as in `sweep.backward`, for inputs without near queries of their own.

    hears: (first, reach, back), key j hears row i, counted from the first row, if
    j >= reach floor((first + i) / reach) - first - back; None: no gradient of the keys. Result's k and v are
    [b g t .]: keys of the state have none. Beside its results it takes O(sqrt(t s)) rows of memory a thread.
    """
    b, g, m, t, d = inputs.q.shape
    s, e = inputs.codebook.shape[1], inputs.v.shape[-1]
    q, new = inputs.q.contiguous(), inputs.q.new_empty
    dq, dv = new(b, g, m, t, d), new(b, g, t, e)
    dk = None if hears is None else new(b, g, t, d)
    dbias = None if inputs.bias is None else new(b, g, m, plan.window)
    dcodebook = new(b, g, s, d) if codebook else None
    first, reach, back = (0, 1, 0) if hears is None else hears
    native.backward(
        q=q,
        codes=inputs.codes.contiguous(),
        values=inputs.v.contiguous(),
        codebook=inputs.codebook.contiguous(),
        bias=None if inputs.bias is None else inputs.bias.contiguous(),
        count=far.count,
        mean=far.mean,
        lse=lse.contiguous(),
        grad=grad.contiguous(),
        dot=dot.contiguous(),
        dq=dq,
        dk=dk,
        dv=dv,
        dbias=dbias,
        dcodebook=dcodebook,
        scale=inputs.scale,
        window=plan.window,
        strict=plan.strict,
        first=first,
        reach=reach,
        back=back,
        threads=torch.get_num_threads(),
    )
    return Gradients(
        q=dq,
        q_near=None,
        k=dk,
        k_near=None,
        v=dv,
        codebook=None if dcodebook is None else dcodebook.sum(0),
        bias=None if dbias is None else dbias.sum(0),
    )
