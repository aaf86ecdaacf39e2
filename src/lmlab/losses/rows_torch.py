"""The row visit in torch operations: for accelerators, and for a CPU without the native module."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from lmlab.losses.kinds import CE, DFT, EMO, TVD, Focal, MixCE, TaiLr
from lmlab.losses.rows import RowCosts, RowOptions, RowResults, sum_dtype


def visit_rows(
    u: Tensor,
    out: Tensor | None,
    target: Tensor,
    costs: RowCosts | None,
    options: RowOptions,
    scale: float | Tensor,
    rows: Tensor | None,
    tokens: Tensor,
    results: RowResults,
) -> None:
    """See `visit.visit_rows`."""
    compute = _compiled() if u.is_cuda else row_pass
    table = None if costs is None or costs.table is None else costs.table
    if table is not None and costs is not None and costs.index is not None:
        table = table.index_select(0, costs.index)
    weight = scale[:, None] if isinstance(scale, Tensor) else u.new_full((1, 1), scale, dtype=sum_dtype(u))
    du, value, ce, emo, lse, correct = compute(
        u if rows is None else u.index_select(0, rows),
        target[:, None],
        table,
        weight,
        options,
        costs is not None,
        costs is not None and costs.cosines,
        out is not None,
    )
    results.value[tokens] = value[:, 0]
    results.ce[tokens] = ce[:, 0]
    results.lse[tokens] = lse[:, 0]
    results.correct[tokens] = correct[:, 0]
    if emo is not None:
        results.emo[tokens] = emo[:, 0]
    if out is not None and du is not None:
        if rows is None:
            out.copy_(du)
        else:
            out[rows] = du.to(out.dtype)


def visit_soft_rows(
    u: Tensor,
    out: Tensor | None,
    costs: Tensor,
    mass: Tensor,
    weights: tuple[float, float],
    softcap: float | None,
    scale: float | Tensor,
    rows: Tensor | None,
    tokens: Tensor,
    results: RowResults,
) -> None:
    """See `visit.visit_soft_rows`."""
    z = u if rows is None else u.index_select(0, rows)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    lse = z.logsumexp(1, keepdim=True)
    p = torch.exp(z - lse)
    emo = (p * costs).sum(1, keepdim=True)
    results.lse[tokens], results.emo[tokens] = lse[:, 0], emo[:, 0]
    if out is None:
        return
    ce_weight, emo_weight = weights
    du = p * (ce_weight * mass[:, None] + emo_weight * (costs - emo))
    if softcap is not None:
        du *= 1 - (z / softcap).square()
    du *= scale[:, None] if isinstance(scale, Tensor) else scale
    if rows is None:
        out.copy_(du)
    else:
        out[rows] = du


def row_pass(
    u: Tensor,
    t: Tensor,
    table: Tensor | None,
    scale: Tensor,
    options: RowOptions,
    with_cost: bool,
    cosines: bool,
    gradient: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """(du, value, ce, emo, lse, correct) of logits u [r v] with targets t [r 1]; all but du are [r 1].

    One function without side effects, so that torch.compile makes one kernel of it.
    """
    z = u.to(sum_dtype(u))
    cap = options.softcap
    if cap is not None:
        z = cap * torch.tanh(z / cap)
    z_t = z.gather(1, t)
    top = z.amax(1, keepdim=True)
    e = torch.exp(z - top).scatter(1, t, 0.0)
    rest = e.sum(1, keepdim=True)
    e_t = torch.exp(z_t - top)
    total = rest + e_t
    lse = top + total.log()
    # top - z_t is 0 in the first case, unless both are infinite: then the row is NaN.
    ce = torch.where(z_t == top, torch.log1p(rest) + (top - z_t), (top - z_t) + total.log())
    p_t, rest_p = e_t / total, rest / total

    smooth, epsilon = ce, options.label_smoothing
    if epsilon > 0:
        smooth = (1 - epsilon) * ce + epsilon * (total.log() - (z - top).mean(1, keepdim=True))

    cost = None if table is None else ((1 - table).clamp_min(0) if cosines else table)
    emo = None
    if with_cost:
        emo = rest_p if cost is None else (e * cost).sum(1, keepdim=True) / total

    value, a, b, g = _weights(options, ce, smooth, emo, p_t, rest_p)
    if options.z_loss:
        value = value + options.z_loss * lse.square()
    correct = (u.argmax(1, keepdim=True) == t) & ~ce.isnan()
    if not gradient:
        return None, value, ce, emo, lse, correct

    at_zero = 2 * options.z_loss * lse  # the z-loss pulls at lse, so at every word by p_j
    k0 = a + g + at_zero
    if emo is not None:
        k0 = k0 - b * emo
    if cost is not None:
        factor = k0 + b * cost
    else:
        factor = k0 + b if with_cost else k0
    dz = e / total * factor - a * (epsilon / z.shape[1])
    dz_t = -(a + g) * rest_p + a * epsilon * (1 - 1 / z.shape[1]) + at_zero * p_t
    if emo is not None:
        dz_t = dz_t - b * emo * p_t
    dz = dz.scatter(1, t, dz_t.to(dz.dtype))
    if cap is not None:
        dz = dz * (1 - (z / cap).square())
    return (dz * scale).to(u.dtype), value, ce, emo, lse, correct


def _weights(
    options: RowOptions, ce: Tensor, smooth: Tensor, emo: Tensor | None, p_t: Tensor, rest_p: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A row's value, the weights a of ce_eps and b of emo in its gradient, and g of p_t (TVD, Focal)."""
    zero, one = torch.zeros_like(ce), torch.ones_like(ce)
    match options.loss:
        case CE():
            return smooth, one, zero, zero
        case TVD():
            return rest_p, zero, zero, p_t
        case DFT():
            return p_t * smooth, p_t, zero, zero
        case MixCE(eta):
            a = eta + (1 - eta) * p_t
            return a * smooth, a, zero, zero
        case TaiLr(gamma, floor):
            # gamma = 0 at p_t = 0 is 0 / 0, and the limit is 1.
            share = p_t / (gamma + (1 - gamma) * p_t) if gamma > 0 else one
            a = share.clamp(floor, 1.0)
            return a * smooth, a, zero, zero
        case Focal(gamma):
            a = rest_p**gamma
            slope = gamma * p_t * rest_p ** (gamma - 1) * smooth if gamma > 0 else zero
            return a * smooth, a, zero, torch.where(rest_p > 0, slope, 0.0)
        case EMO(balance, clamp, shift, weight_ce, weight_emo):
            assert emo is not None
            e = emo + p_t if shift else emo
            if balance == "none":
                return weight_ce * smooth + weight_emo * e, weight_ce * one, weight_emo * one, zero
            if balance == "emo":
                ratio = _clamped(ce / (e + 1e-10), clamp)
                return 0.5 * (smooth + ratio * e), 0.5 * one, 0.5 * ratio, zero
            ratio = _clamped(e / (ce + 1e-10), clamp)
            return e + ratio * smooth, ratio, one, zero


def _clamped(ratio: Tensor, clamp: float | None) -> Tensor:
    return ratio if clamp is None else ratio.clamp(max=clamp)


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor, Tensor]]:
    return torch.compile(row_pass, dynamic=True, fullgraph=True)
