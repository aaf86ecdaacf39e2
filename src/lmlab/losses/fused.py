"""The losses of hidden and the output head, with the logits made and used chunk by chunk."""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmlab.losses import check
from lmlab.losses.cost import Cost, CostView
from lmlab.losses.kinds import CE, EMO, Loss
from lmlab.losses.plan import make_plan
from lmlab.losses.rows import RowCosts, RowOptions, RowResults, sum_dtype
from lmlab.losses.stats import LossStats
from lmlab.losses.visit import row_bytes, visit_rows


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


@dataclass(frozen=True)
class Call:
    """All of a call that isn't a tensor of autograd's."""

    options: RowOptions
    cost: Cost | None
    ignore_index: int
    reduction: str
    num_items: int | Tensor | None
    budget: int
    gradient: bool

    def divisor(self, count: int) -> float | Tensor:
        """What the sum over tokens is divided by. A tensor on an accelerator isn't read back."""
        if self.reduction != "mean":
            return 1.0
        if self.num_items is None:
            return float(max(count, 1))
        if isinstance(self.num_items, Tensor) and self.num_items.device.type != "cpu":
            return self.num_items.clamp(min=1)
        items = float(self.num_items)
        if items <= 0 and count > 0:
            raise ValueError(f"num_items={items:g} must be > 0: {count} tokens of this call are kept")
        return max(items, 1.0)


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
    call = Call(
        RowOptions(kind, label_smoothing, z_loss, softcap),
        cost,
        ignore_index,
        reduction,
        num_items,
        budget,
        torch.is_grad_enabled(),
    )
    outputs = _LinearLoss.apply(hidden, weight, bias, target, call)
    return result(outputs, call, target) if return_stats else outputs[0]


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


def result(outputs: tuple[Tensor, ...], call: Call, target: Tensor) -> tuple[Tensor, LossStats]:
    """The value and the statistics of a call."""
    value, ce, emo, lse, correct = outputs
    count = int((target != call.ignore_index).sum())
    return value, LossStats(ce, emo if call.cost is not None else None, lse, correct, count)


class _LinearLoss(torch.autograd.Function):
    """Gradients of "mean" and "sum" are made in the forward pass, chunk by chunk, of "none" in backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, call: Call
    ) -> tuple[Tensor, ...]:
        flat = target.reshape(-1)
        kept = (flat != call.ignore_index).nonzero()[:, 0]
        dtype = sum_dtype(hidden)
        results = RowResults.zeros(len(flat), dtype, hidden.device)
        divisor = call.divisor(len(kept))
        wanted = tuple(need and call.gradient for need in ctx.needs_input_grad[:3])
        now = wanted if call.reduction != "none" else (False, False, False)
        # Half types keep gradients of the plain sum, scaled once at the end: 1 / n would underflow in them.
        early = not isinstance(divisor, Tensor) and hidden.dtype == dtype
        scale = 1 / divisor if early and not isinstance(divisor, Tensor) else 1.0
        gradients = sweep(hidden, weight, bias, flat, kept, call, scale, now, results)

        ctx.call, ctx.wanted, ctx.late = call, wanted, 1.0 if early else 1 / divisor
        ctx.set_materialize_grads(False)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        if call.reduction == "none":
            ctx.save_for_backward(hidden, weight, bias, flat, kept)
            value = results.value.view(target.shape)
        else:
            ctx.save_for_backward(*gradients)
            value = (results.value.sum(dtype=exact_dtype(results.value)) / divisor).to(dtype)
        stats = [s.view(target.shape) for s in (results.ce, results.emo, results.lse, results.correct)]
        ctx.mark_non_differentiable(*stats)
        return (value, *stats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        call: Call = ctx.call
        if call.reduction != "none":
            saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
            return (*(_scaled(g, grad * ctx.late, dtype) for g, dtype in saved), None, None)
        hidden, weight, bias, flat, kept = ctx.saved_tensors
        results = RowResults.zeros(len(flat), sum_dtype(hidden), hidden.device)
        per_token = grad.reshape(-1)
        made = sweep(hidden, weight, bias, flat, kept, call, per_token, ctx.wanted, results)
        made_of = zip(made, ctx.dtypes, strict=True)
        return (*(None if g is None else g.to(dtype) for g, dtype in made_of), None, None)


def _scaled(gradient: Tensor | None, factor: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    """gradient · factor as a new tensor: a second backward through a retained graph finds it whole."""
    return None if gradient is None else (gradient * factor).to(dtype)


def exact_dtype(values: Tensor) -> torch.dtype:
    """The type to sum losses in; accelerators have slow float64."""
    return torch.float64 if values.device.type == "cpu" else values.dtype


def sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    kept: Tensor,
    call: Call,
    scale: float | Tensor,
    wanted: tuple[bool, ...],
    results: RowResults,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Visit the tokens `kept` of hidden [… d] and target [n]; returns the wanted gradients of Σ scale · loss.

    scale: one factor for all tokens, or one for each of the n. dweight and dbias come in the type of the sum.
    """
    v, device = weight.shape[0], weight.device
    dtype = sum_dtype(hidden)
    view = None if call.cost is None else CostView(call.cost)
    plan = make_plan(target, kept, row_bytes(v, weight.dtype, device), view, v * dtype.itemsize, call.budget)
    logits = weight.new_empty(plan.rows, v)
    table = weight.new_empty(plan.cost_rows, v, dtype=dtype) if plan.words is not None else None
    dhidden = torch.zeros(hidden.shape, dtype=hidden.dtype, device=device) if wanted[0] else None
    dweight = torch.zeros(weight.shape, dtype=dtype, device=device) if wanted[1] else None
    dbias = torch.zeros(v, dtype=dtype, device=device) if wanted[2] else None
    costs = None
    with torch.autocast(device.type, enabled=False):
        for chunk in plan.chunks():
            tokens = plan.order[chunk.start : chunk.stop]
            h = gather_rows(hidden, tokens)
            z = logits[: len(tokens)]
            if bias is None:
                torch.mm(h, weight.T, out=z)
            else:
                torch.addmm(bias, h, weight.T, out=z)
            if view is not None:
                if chunk.words is not None and table is not None:
                    view.rows(chunk.words, table[: len(chunk.words)])
                costs = RowCosts(table, chunk.index, view.cosines)
            visit_rows(
                z,
                z if any(wanted) else None,
                plan.target[chunk.start : chunk.stop],
                costs,
                call.options,
                scale[tokens] if isinstance(scale, Tensor) else scale,
                None,
                tokens,
                results,
            )
            if dhidden is not None:
                dhidden.view(-1, hidden.shape[-1]).index_copy_(0, tokens, torch.mm(z, weight))
            if dweight is not None:
                _add_product(dweight, z, h)
            if dbias is not None:
                dbias += z.sum(0, dtype=dtype)
    return dhidden, dweight, dbias


def gather_rows(tensor: Tensor, tokens: Tensor) -> Tensor:
    """Rows of [… d] by the number of their token; only these are copied, whatever the strides are."""
    try:
        flat = tensor.view(-1, tensor.shape[-1])
    except RuntimeError:  # strides that no two axes describe
        return tensor[torch.unravel_index(tokens, tensor.shape[:-1])]
    return flat.index_select(0, tokens)


def _add_product(total: Tensor, z: Tensor, h: Tensor) -> None:
    """total += zᵀ h. A half-precision product is made by blocks of words and added in the total's type."""
    if z.dtype == total.dtype:
        total.addmm_(z.T, h)
        return
    for start in range(0, len(total), 4096):
        block = slice(start, start + 4096)
        total[block] += torch.mm(z[:, block].T, h)
