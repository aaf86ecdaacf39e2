"""The same losses where the logits exist already."""

from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lmlab.losses import check
from lmlab.losses.cost import Cost
from lmlab.losses.fused import gather_rows, with_stats
from lmlab.losses.kinds import CE, EMO, Loss
from lmlab.losses.labels import HardLabels, Labels
from lmlab.losses.once import differentiable_once
from lmlab.losses.rows import RowOptions, RowResults
from lmlab.losses.stats import LossStats
from lmlab.losses.visit import is_native, row_bytes


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
    flat = target.reshape(-1)
    labels = HardLabels(
        target.shape,
        (flat != ignore_index).nonzero()[:, 0],
        cost,
        reduction,
        num_items,
        budget,
        torch.is_grad_enabled(),
        flat,
        RowOptions(kind, label_smoothing, z_loss, softcap),
    )
    outputs = LossOfLogits.apply(logits, labels)
    return with_stats(outputs, labels) if return_stats else outputs[0]


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


class LossOfLogits(torch.autograd.Function):
    """The gradient is made in backward, into one tensor of the size of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Labels) -> tuple[Tensor, ...]:
        results = labels.results(logits)
        divisor = labels.divisor()
        sweep_logits(logits, labels, 1.0, None, results)
        ctx.labels, ctx.divisor = labels, divisor
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, *labels.tensors)
        stats = results.stats(labels.shape)
        ctx.mark_non_differentiable(*stats)
        return (labels.value(results, divisor), *stats)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None
        labels: Labels = ctx.labels
        logits, *_ = ctx.saved_tensors
        n = labels.shape.numel()
        out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        if len(labels.kept) < n:
            ignored = torch.ones(n, dtype=torch.bool, device=logits.device)
            ignored[labels.kept] = False
            out.view(n, -1)[ignored] = 0
        per_token = (grad / ctx.divisor).expand(n) if grad.ndim == 0 else grad.reshape(-1)
        sweep_logits(logits, labels, per_token, out, labels.results(logits))
        return out, None


def sweep_logits(
    logits: Tensor, labels: Labels, scale: float | Tensor, out: Tensor | None, results: RowResults
) -> None:
    """Visit the kept tokens of logits [… v]; their gradient goes to `out`, which is contiguous."""
    v, device = logits.shape[-1], logits.device
    in_place = logits.is_contiguous() and is_native(logits.dtype, device)
    bytes_of_row = 1 if in_place else row_bytes(v, logits.dtype, device)
    _, chunks = labels.chunks(v, logits, bytes_of_row, results)
    flat_out = None if out is None else out.view(-1, v)
    for tokens, visit in chunks:
        factor = scale[tokens] if isinstance(scale, Tensor) else scale
        if in_place:
            visit(logits.view(-1, v), flat_out, scale=factor, rows=tokens)
        else:
            z = gather_rows(logits, tokens).contiguous()
            visit(z, None if flat_out is None else z, scale=factor, rows=None)
            if flat_out is not None:
                flat_out[tokens] = z
