"""The same losses where the logits exist already."""

from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmlab.losses import check
from lmlab.losses.cost import Cost, CostView
from lmlab.losses.fused import Call, exact_dtype, gather_rows, result
from lmlab.losses.kinds import CE, EMO, Loss
from lmlab.losses.plan import make_plan
from lmlab.losses.rows import RowCosts, RowOptions, RowResults, sum_dtype
from lmlab.losses.stats import LossStats
from lmlab.losses.visit import is_native, row_bytes, visit_rows


class LogitsOptions(TypedDict, total=False):
    """The keyword arguments that the losses of logits share."""

    label_smoothing: float
    z_loss: float
    softcap: float | None
    ignore_index: int
    reduction: str
    num_items: int | Tensor | None
    budget: int


_CE = CE()
_EMO = EMO()


@overload
def logits_loss(
    logits: Tensor,
    target: Tensor,
    loss: Loss | str = ...,
    *,
    cost: Cost | None = ...,
    return_stats: Literal[False] = ...,
    **options: Unpack[LogitsOptions],
) -> Tensor: ...
@overload
def logits_loss(
    logits: Tensor,
    target: Tensor,
    loss: Loss | str = ...,
    *,
    cost: Cost | None = ...,
    return_stats: Literal[True],
    **options: Unpack[LogitsOptions],
) -> tuple[Tensor, LossStats]: ...
def logits_loss(
    logits: Float[Tensor, "*batch v"],
    target: Int64[Tensor, "*batch"],
    loss: Loss | str = _CE,
    *,
    cost: Cost | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    num_items: int | Tensor | None = None,
    budget: int = 64 * 2**20,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, LossStats]:
    """The loss of logits [… v] against target […]; all else is as in `linear_loss`.

    The gradient is made in backward, so one tensor of the size of the logits is held beside them.
    """
    kind = check.options(
        loss,
        cost,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        reduction=reduction,
        budget=budget,
    )
    check.num_items(num_items, reduction)
    check.logits(logits)
    check.targets(target, logits.shape[:-1], logits.shape[-1], ignore_index, logits)
    check.vocabulary(cost, logits.shape[-1], logits.device)
    call = Call(
        RowOptions(kind, label_smoothing, z_loss, softcap),
        cost,
        ignore_index,
        reduction,
        num_items,
        budget,
        torch.is_grad_enabled(),
    )
    outputs = _LogitsLoss.apply(logits, target, call)
    return result(outputs, call, target) if return_stats else outputs[0]


def emo_loss(
    logits: Float[Tensor, "*batch v"],
    target: Int64[Tensor, "*batch"],
    cost: Cost,
    loss: Loss | str = _EMO,
    *,
    return_stats: bool = False,
    **options: Unpack[LogitsOptions],
) -> Tensor | tuple[Tensor, LossStats]:
    """`logits_loss` with a cost, EMO() unless another loss is given."""
    if return_stats:
        return logits_loss(logits, target, loss, cost=cost, return_stats=True, **options)
    return logits_loss(logits, target, loss, cost=cost, **options)


class _LogitsLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, call: Call) -> tuple[Tensor, ...]:
        flat = target.reshape(-1)
        kept = (flat != call.ignore_index).nonzero()[:, 0]
        results = RowResults.zeros(len(flat), sum_dtype(logits), logits.device)
        divisor = call.divisor(len(kept))
        sweep_logits(logits, flat, kept, call, 1.0, None, results)
        ctx.call, ctx.divisor = call, divisor
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, flat, kept)
        if call.reduction == "none":
            value = results.value.view(target.shape)
        else:
            value = (results.value.sum(dtype=exact_dtype(results.value)) / divisor).to(results.value.dtype)
        stats = [s.view(target.shape) for s in (results.ce, results.emo, results.lse, results.correct)]
        ctx.mark_non_differentiable(*stats)
        return (value, *stats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None
        logits, flat, kept = ctx.saved_tensors
        results = RowResults.zeros(len(flat), sum_dtype(logits), logits.device)
        out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        if len(kept) < len(flat):
            out.view(-1, logits.shape[-1])[flat == ctx.call.ignore_index] = 0
        per_token = (grad / ctx.divisor).expand(flat.shape) if grad.ndim == 0 else grad.reshape(-1)
        sweep_logits(logits, flat, kept, ctx.call, per_token, out, results)
        return out, None, None


def sweep_logits(
    logits: Tensor,
    target: Tensor,
    kept: Tensor,
    call: Call,
    scale: float | Tensor,
    out: Tensor | None,
    results: RowResults,
) -> None:
    """Visit the tokens `kept` of logits [… v] and target [n]; their gradient goes to `out` (contiguous)."""
    v, device = logits.shape[-1], logits.device
    dtype = sum_dtype(logits)
    view = None if call.cost is None else CostView(call.cost)
    in_place = logits.is_contiguous() and is_native(logits.dtype, device)
    bytes_of_row = 1 if in_place else row_bytes(v, logits.dtype, device)
    plan = make_plan(target, kept, bytes_of_row, view, v * dtype.itemsize, call.budget)
    table = logits.new_empty(plan.cost_rows, v, dtype=dtype) if plan.words is not None else None
    flat_out = None if out is None else out.view(-1, v)
    costs = None
    for chunk in plan.chunks():
        tokens, targets = plan.order[chunk.start : chunk.stop], plan.target[chunk.start : chunk.stop]
        factor = scale[tokens] if isinstance(scale, Tensor) else scale
        if view is not None:
            if chunk.words is not None and table is not None:
                view.rows(chunk.words, table[: len(chunk.words)])
            costs = RowCosts(table, chunk.index, view.cosines)
        if in_place:
            u = logits.view(-1, v)
            visit_rows(u, flat_out, targets, costs, call.options, factor, tokens, tokens, results)
        else:
            z = gather_rows(logits, tokens).contiguous()
            du = None if flat_out is None else z
            visit_rows(z, du, targets, costs, call.options, factor, None, tokens, results)
            if flat_out is not None:
                flat_out[tokens] = z
