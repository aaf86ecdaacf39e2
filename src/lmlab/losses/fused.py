"""The losses of hidden and the output head, with the logits made and used chunk by chunk."""

from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lmlab.losses import check
from lmlab.losses.cost import Cost
from lmlab.losses.kinds import CE, EMO, Loss
from lmlab.losses.labels import HardLabels, Labels
from lmlab.losses.once import differentiable_once
from lmlab.losses.products import add_outer, apart, multiply, multiply_back
from lmlab.losses.rows import RowOptions, RowResults, sum_dtype
from lmlab.losses.stats import LossStats
from lmlab.losses.visit import row_bytes


class LinearOptions(TypedDict, total=False):
    """The keyword arguments that the losses with a head share."""

    bias: Tensor | None
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
def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    loss: Loss | str = ...,
    *,
    cost: Cost | None = ...,
    return_stats: Literal[False] = ...,
    **options: Unpack[LinearOptions],
) -> Tensor: ...
@overload
def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    loss: Loss | str = ...,
    *,
    cost: Cost | None = ...,
    return_stats: Literal[True],
    **options: Unpack[LinearOptions],
) -> tuple[Tensor, LossStats]: ...
def linear_loss(
    hidden: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "v d"],
    target: Int64[Tensor, "*batch"],
    loss: Loss | str = _CE,
    *,
    cost: Cost | None = None,
    bias: Float[Tensor, " v"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    num_items: int | Tensor | None = None,
    budget: int = 64 * 2**20,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, LossStats]:
    """The loss of logits = hidden · weightᵀ + bias against target, without ever holding the logits.

    loss: a dataclass of this room or a name ("emo2"); EMO needs `cost`. softcap κ: z = κ · tanh(u/κ).
    z_loss: adds z_loss · lse² to each row. reduction: "mean" over kept tokens, "sum", or "none" (target's
    shape, 0 where ignored). num_items: divisor of "mean" instead of the kept count (gradient accumulation).
    budget: bytes for logits and cost rows. Labels aren't shifted here: do
    F.pad(labels[:, 1:], (0, 1), value=-100).

    Returns a float64 result for float64 input, else float32; with return_stats also `LossStats`.
    Differentiable once in hidden, weight and bias. Under autocast all are cast as F.linear does. No kept
    token: 0.0. Raises ValueError, TypeError, and IndexError for a target outside [0, v) that isn't ignored.
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
    check.head(hidden, weight, bias)
    check.targets(target, hidden.shape[:-1], weight.shape[0], ignore_index, hidden)
    check.vocabulary(cost, weight.shape[0], weight.device)
    hidden, weight, bias = autocast(hidden, weight, bias)
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
    outputs = FusedLoss.apply(hidden, weight, bias, labels)
    return with_stats(outputs, labels) if return_stats else outputs[0]


def linear_cross_entropy(
    hidden: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "v d"],
    target: Int64[Tensor, "*batch"],
    *,
    return_stats: bool = False,
    **options: Unpack[LinearOptions],
) -> Tensor | tuple[Tensor, LossStats]:
    """`linear_loss` with CE()."""
    if return_stats:
        return linear_loss(hidden, weight, target, return_stats=True, **options)
    return linear_loss(hidden, weight, target, **options)


def linear_emo_loss(
    hidden: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "v d"],
    target: Int64[Tensor, "*batch"],
    cost: Cost,
    loss: Loss | str = _EMO,
    *,
    return_stats: bool = False,
    **options: Unpack[LinearOptions],
) -> Tensor | tuple[Tensor, LossStats]:
    """`linear_loss` with a cost, EMO() unless another loss is given."""
    if return_stats:
        return linear_loss(hidden, weight, target, loss, cost=cost, return_stats=True, **options)
    return linear_loss(hidden, weight, target, loss, cost=cost, **options)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Under autocast, the tensors in its type, float64 excepted; as they are elsewhere. Then: one dtype."""
    given = [tensor for tensor in tensors if tensor is not None]
    device = given[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tensors = tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)
    named = dict(zip(("hidden", "weight", "bias"), tensors, strict=False))
    check.one_dtype({name: tensor for name, tensor in named.items() if tensor is not None})
    return tensors


def with_stats(outputs: tuple[Tensor, ...], labels: Labels) -> tuple[Tensor, LossStats]:
    """The value and the statistics among the outputs of an autograd function of this room."""
    value, ce, emo, lse, correct = outputs
    return value, LossStats(ce, emo if labels.cost is not None else None, lse, correct, len(labels.kept))


class FusedLoss(torch.autograd.Function):
    """Gradients of "mean" and "sum" are made in the forward pass, chunk by chunk, of "none" in backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Labels
    ) -> tuple[Tensor, ...]:
        results = labels.results(hidden)
        divisor = labels.divisor()
        wanted = tuple(need and labels.gradient for need in ctx.needs_input_grad[:3])
        now = wanted if labels.reduction != "none" else (False, False, False)
        # Half types keep gradients of the plain sum, scaled once at the end: 1 / n would underflow in them.
        early = not isinstance(divisor, Tensor) and hidden.dtype == results.value.dtype
        scale = 1 / divisor if early and not isinstance(divisor, Tensor) else 1.0
        gradients = sweep(hidden, weight, bias, labels, scale, now, results)

        ctx.labels, ctx.wanted, ctx.late = labels, wanted, 1.0 if early else 1 / divisor
        ctx.set_materialize_grads(False)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        if labels.reduction == "none":
            ctx.save_for_backward(hidden, weight, bias, *labels.tensors)
        else:
            ctx.save_for_backward(*gradients)
        stats = results.stats(labels.shape)
        ctx.mark_non_differentiable(*stats)
        return (labels.value(results, divisor), *stats)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        labels: Labels = ctx.labels
        if labels.reduction != "none":
            saved, factor, kept = ctx.saved_tensors, grad * ctx.late, graph_is_kept()
            return (*(_scaled(g, factor, t, kept) for g, t in zip(saved, ctx.dtypes, strict=True)), None)
        hidden, weight, bias, *_ = ctx.saved_tensors
        made = sweep(hidden, weight, bias, labels, grad.reshape(-1), ctx.wanted, labels.results(hidden))
        made_of = zip(made, ctx.dtypes, strict=True)
        return (*(None if g is None else g.to(dtype) for g, dtype in made_of), None)


def _scaled(gradient: Tensor | None, factor: Tensor, dtype: torch.dtype | None, kept: bool) -> Tensor | None:
    """gradient · factor. A gradient of the size of the head isn't held twice, unless the graph is kept."""
    if gradient is None:
        return None
    if kept:  # a second backward must find the saved gradient as it is
        gradient = gradient * factor
    elif factor.device.type != "cpu" or factor != 1:
        gradient *= factor
    return gradient.to(dtype)


def graph_is_kept() -> bool:
    """Whether the backward pass that runs leaves its graph for another one (retain_graph).

    torch tells this without a public name; where it doesn't, the answer is the careful one.
    """
    told = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return told is None or bool(told())


def sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Labels,
    scale: float | Tensor,
    wanted: tuple[bool, ...],
    results: RowResults,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Visit the kept tokens of hidden [… d]; returns the wanted gradients of Σ scale · loss.

    scale: one factor for all tokens, or one for each of the n. dweight and dbias come in the type of the sum.
    """
    v, device = weight.shape[0], weight.device
    dtype = sum_dtype(hidden)
    dhidden = torch.zeros(hidden.shape, dtype=hidden.dtype, device=device) if wanted[0] else None
    make = torch.empty if len(labels.kept) else torch.zeros  # the first chunk's product fills it
    dweight = make(weight.shape, dtype=dtype, device=device) if wanted[1] else None
    dbias = torch.zeros(v, dtype=dtype, device=device) if wanted[2] else None
    first = True
    with torch.autocast(device.type, enabled=False):
        most, chunks = labels.chunks(v, weight, row_bytes(v, weight.dtype, device), results)
        logits = apart(most, v, weight)
        for tokens, visit in chunks:
            h = gather_rows(hidden, tokens)
            z = logits[: len(tokens)]
            multiply(h, weight, z, bias)
            factor = scale[tokens] if isinstance(scale, Tensor) else scale
            visit(z, z if any(wanted) else None, scale=factor, rows=None)
            if dhidden is not None:
                dhidden.view(-1, hidden.shape[-1]).index_copy_(0, tokens, multiply_back(z, weight))
            if dweight is not None:
                add_outer(dweight, z, h, first=first)
            if dbias is not None:
                dbias += z.sum(0, dtype=dtype)
            first = False
    return dhidden, dweight, dbias


def gather_rows(tensor: Tensor, tokens: Tensor) -> Tensor:
    """Rows of [… d] by the number of their token; only these are copied, whatever the strides are."""
    try:
        flat = tensor.view(-1, tensor.shape[-1])
    except RuntimeError:  # strides that no two axes describe
        return tensor[torch.unravel_index(tokens, tensor.shape[:-1])]
    return flat.index_select(0, tokens)
