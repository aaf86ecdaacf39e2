"""Soft labels: the product plan's upper bound of the transport cost, dense or over a teacher's top k.

OT(p, τ) <= Σ_ij p_i τ_j c_ij = Σ_i p_i r_i with r_i = Σ_j τ_j c_ij, and with a one-hot τ it is emo. The
gradient is that of a cost row: dz_i = emo · p_i (r_i − Σ_j p_j r_j) + ce · (p_i Σ_j τ_j − τ_i).
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lmlab.losses import check
from lmlab.losses.cost import Cost, CostView
from lmlab.losses.fused import FusedLoss, autocast
from lmlab.losses.labels import Chunks, Labels
from lmlab.losses.logits import LossOfLogits
from lmlab.losses.plan import pieces, rows_within
from lmlab.losses.rows import RowResults, sum_dtype
from lmlab.losses.visit import visit_soft_rows


def soft_emo_loss(
    logits: Float[Tensor, "*batch v"],
    probs: Float[Tensor, "*batch k"],
    cost: Cost,
    *,
    ids: Int64[Tensor, "*batch k"] | None = None,
    ce: float = 0.0,
    emo: float = 1.0,
    reduction: str = "mean",
    mask: Bool[Tensor, "*batch"] | None = None,
    budget: int = 64 * 2**20,
) -> Tensor:
    """emo · Σ_ij p_i τ_j c_ij + ce · (−Σ_j τ_j log p_j): an upper bound of transport, and soft cross-entropy.

    probs: τ over all words [… v], or [… k] of the words ids [… k] (all other τ are 0); a constant, and used as
    it is given: it isn't brought to sum 1. mask: False leaves a token out of the sum and of the count.
    reduction: "mean" over kept tokens, "sum" or "none". Differentiable once in logits.
    """
    check.logits(logits)
    _check(probs, ids, mask, cost, ce, emo, reduction, budget, logits.shape[:-1], logits.shape[-1], logits)
    labels = _labels(logits, probs, ids, mask, cost, (ce, emo), None, reduction, budget)
    value: Tensor = LossOfLogits.apply(logits, labels)[0]
    return value


def linear_soft_emo_loss(
    hidden: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "v d"],
    probs: Float[Tensor, "*batch k"],
    cost: Cost,
    *,
    ids: Int64[Tensor, "*batch k"] | None = None,
    bias: Float[Tensor, " v"] | None = None,
    softcap: float | None = None,
    ce: float = 0.0,
    emo: float = 1.0,
    reduction: str = "mean",
    mask: Bool[Tensor, "*batch"] | None = None,
    budget: int = 64 * 2**20,
) -> Tensor:
    """`soft_emo_loss` of logits = hidden · weightᵀ + bias, which are never held whole.

    Differentiable once in hidden, weight and bias; softcap κ: z = κ · tanh(u/κ).
    """
    check.softcap_option(softcap)
    check.head(hidden, weight, bias)
    _check(probs, ids, mask, cost, ce, emo, reduction, budget, hidden.shape[:-1], weight.shape[0], hidden)
    hidden, weight, bias = autocast(hidden, weight, bias)
    labels = _labels(hidden, probs, ids, mask, cost, (ce, emo), softcap, reduction, budget)
    value: Tensor = FusedLoss.apply(hidden, weight, bias, labels)[0]
    return value


def _check(
    probs: Tensor,
    ids: Tensor | None,
    mask: Tensor | None,
    cost: Cost,
    ce: float,
    emo: float,
    reduction: str,
    budget: int,
    leading: torch.Size,
    v: int,
    like: Tensor,
) -> None:
    check.cost_option(cost)
    check.finite("ce", ce)
    check.finite("emo", emo)
    check.reduction_option(reduction)
    check.budget_option(budget)
    check.floating("probs", probs)
    named = {"logits or hidden": like, "probs": probs}
    if ids is None:
        if probs.shape != (*leading, v):
            raise ValueError(
                f"probs must be [… v] = {(*leading, v)}, or [… k] with the words' ids=; got {tuple(probs.shape)}"
            )
    else:
        named["ids"] = ids
        if ids.dtype != torch.int64:
            raise TypeError(f"ids must be an int64 tensor of word ids; got {ids.dtype}")
        if probs.shape != ids.shape or probs.shape[:-1] != leading or probs.ndim != len(leading) + 1:
            raise ValueError(
                f"probs and ids must both be [… k] with leading axes {tuple(leading)}; "
                f"got probs {tuple(probs.shape)} and ids {tuple(ids.shape)}"
            )
    if mask is not None:
        named["mask"] = mask
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, False where a token is left out; got {mask.dtype}")
        if mask.shape != leading:
            raise ValueError(f"mask must have the shape {tuple(leading)}; got {tuple(mask.shape)}")
    check.one_device(named)
    if ids is not None:
        check.word_ids("ids", ids, v)
    check.vocabulary(cost, v, like.device)


def _labels(
    like: Tensor,
    probs: Tensor,
    ids: Tensor | None,
    mask: Tensor | None,
    cost: Cost,
    weights: tuple[float, float],
    softcap: float | None,
    reduction: str,
    budget: int,
) -> "SoftLabels":
    shape = probs.shape[:-1]
    n = shape.numel()
    kept = torch.arange(n, device=like.device) if mask is None else mask.reshape(-1).nonzero()[:, 0]
    return SoftLabels(
        shape,
        kept,
        cost,
        reduction,
        None,
        budget,
        torch.is_grad_enabled(),
        probs.detach().reshape(n, -1),
        None if ids is None else ids.reshape(n, -1),
        weights,
        softcap,
    )


@dataclass(frozen=True)
class SoftLabels(Labels):
    """A distribution a token: probs [n v], or [n k] of the words ids [n k]."""

    probs: Tensor
    ids: Tensor | None
    weights: tuple[float, float]
    """Of cross-entropy and of the bound."""
    softcap: float | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.probs,) if self.ids is None else (self.probs, self.ids)

    def chunks(self, v: int, like: Tensor, row_bytes: int, results: RowResults) -> tuple[int, Chunks]:
        assert self.cost is not None
        dtype = sum_dtype(like)
        view = CostView(self.cost)
        # Beside a row of logits: the costs, where dense τ and the picked logits, and a wide copy of half types.
        own = ((3 if self.ids is None else 1) + (like.dtype != dtype)) * v * dtype.itemsize
        most = rows_within(self.budget, row_bytes + own, len(self.kept))

        def each() -> Chunks:
            table = like.new_empty(most, v, dtype=dtype)
            for start, stop in pieces(0, len(self.kept), most):
                tokens = self.kept[start:stop]
                tau = self.probs[tokens].to(dtype)
                ids = None if self.ids is None else self.ids[tokens]
                costs = table[: len(tokens)]
                view.mixtures(tau, ids, costs)
                yield (
                    tokens,
                    partial(self._visit, tau=tau, ids=ids, costs=costs, tokens=tokens, results=results),
                )

        return most, each()

    def _visit(
        self,
        u: Tensor,
        out: Tensor | None,
        *,
        scale: float | Tensor,
        rows: Tensor | None,
        tau: Tensor,
        ids: Tensor | None,
        costs: Tensor,
        tokens: Tensor,
        results: RowResults,
    ) -> None:
        if u.dtype != tau.dtype:  # p and τ cancel in the gradient: half types would leave only noise
            wide = (u if rows is None else u[rows]).to(tau.dtype)
            self._visit(
                wide,
                None if out is None else wide,
                scale=scale,
                rows=None,
                tau=tau,
                ids=ids,
                costs=costs,
                tokens=tokens,
                results=results,
            )
            if out is not None:
                out[slice(None) if rows is None else rows] = wide.to(out.dtype)
            return
        ce, emo = self.weights
        z = self._picked(u, rows, ids) if ce else None
        mass = tau.sum(1)
        visit_soft_rows(u, out, costs, mass, self.weights, self.softcap, scale, rows, tokens, results)
        results.value[tokens] = emo * results.emo[tokens]
        if z is None:
            return
        # A word without τ may have p = 0: 0 · log 0 is 0 here.
        results.ce[tokens] = torch.where(tau == 0, 0.0, tau * (results.lse[tokens, None] - z)).sum(1)
        results.value[tokens] += ce * results.ce[tokens]
        if out is None:
            return
        pull = tau * (ce * scale[:, None] if isinstance(scale, Tensor) else ce * scale)
        if self.softcap is not None:
            pull *= 1 - (z / self.softcap).square()
        if ids is None and rows is None:
            out -= pull
        elif ids is None:
            assert rows is not None
            out.index_add_(0, rows, pull, alpha=-1)
        else:
            places = torch.arange(len(ids), device=ids.device) if rows is None else rows
            out.index_put_((places[:, None], ids), -pull, accumulate=True)

    def _picked(self, u: Tensor, rows: Tensor | None, ids: Tensor | None) -> Tensor:
        """The capped logits of the words that τ speaks of, as a copy: the visit writes over u."""
        if ids is None:
            z = u.clone() if rows is None else u.index_select(0, rows)
        elif rows is None:
            z = u.gather(1, ids)
        else:
            z = u[rows[:, None], ids]
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)
