"""The oracle: dense float64 logits and autograd, one line of code for one line of mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.losses.kinds import CE, DFT, EMO, TVD, Focal, Loss, MixCE, TaiLr


def row_losses(
    logits: Tensor,
    target: Tensor,
    loss: Loss,
    *,
    c: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """(value, ce, emo, lse), each [n], of logits [n v] and target [n], none ignored; c[j, t] is [v v]."""
    z = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    lse = z.logsumexp(-1)
    logp = z - lse[:, None]
    p = logp.exp()
    rows = torch.arange(len(target))
    ce, p_t = -logp[rows, target], p[rows, target]
    ce_eps = (1 - label_smoothing) * ce
    if label_smoothing:
        ce_eps = ce_eps - label_smoothing * logp.mean(-1)
    emo = None if c is None else (p * c.T[target]).sum(-1)
    match loss:
        case CE():
            value = ce_eps
        case TVD():
            value = 1 - p_t
        case DFT():
            value = p_t.detach() * ce_eps
        case Focal(gamma):
            value = (1 - p_t) ** gamma * ce_eps
        case TaiLr(gamma, floor):
            value = (p_t / (gamma + (1 - gamma) * p_t)).clamp(floor, 1).detach() * ce_eps
        case MixCE(eta):
            value = (eta + (1 - eta) * p_t.detach()) * ce_eps
        case EMO(balance, clamp, shift, a, b):
            assert emo is not None
            e = emo + p_t.detach() if shift else emo
            most = float("inf") if clamp is None else clamp
            if balance == "none":
                value = a * ce_eps + b * e
            elif balance == "emo":
                value = 0.5 * (ce_eps + (ce / (e + 1e-10)).clamp(max=most).detach() * e)
            else:
                value = e + (e / (ce + 1e-10)).clamp(max=most).detach() * ce_eps
    return value + z_loss * lse**2, ce, emo, lse


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    loss: Loss,
    *,
    c: Tensor | None = None,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    num_items: int | None = None,
) -> Tensor:
    """The loss of hidden [… d], weight [v d], target […]."""
    keep = target != ignore_index
    logits = hidden[keep] @ weight.T + (0 if bias is None else bias)
    value = row_losses(
        logits,
        target[keep],
        loss,
        c=c,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
    )[0]
    if reduction == "none":
        return torch.zeros(target.shape, dtype=value.dtype).masked_scatter(keep, value)
    if reduction == "sum":
        return value.sum()
    return value.sum() / max(1, int(keep.sum()) if num_items is None else num_items)


def cosine_cost(embedding: Tensor, *, center: bool = False) -> Tensor:
    """c [v v] from an embedding [v k]: 1 - cosine, 0 on the diagonal, nothing negative."""
    rows = embedding - embedding.mean(0) if center else embedding
    rows = torch.nn.functional.normalize(rows, dim=1, eps=1e-300)
    c = (1 - rows @ rows.T).clamp(min=0)
    return c - c.diagonal().diag()


def soft_emo(logits: Tensor, tau: Tensor, c: Tensor, *, ce: float = 0.0, emo: float = 1.0) -> Tensor:
    """The bound [n] of logits and tau [n v]: emo · Σ_ij p_i tau_j c_ij + ce · (−Σ_j tau_j log p_j)."""
    logp = logits.log_softmax(-1)
    return emo * torch.einsum("ni,ij,nj->n", logp.exp(), c, tau) - ce * (tau * logp).sum(-1)


def transport(p: Tensor, tau: Tensor, c: Tensor) -> float:
    """OT(p, tau) by linear programming: the least Σ_ij γ_ij c_ij with row sums p and column sums tau [v]."""
    import numpy as np
    from scipy.optimize import linprog

    v = len(p)
    ones = np.ones((1, v))
    margins = np.concatenate([np.kron(np.eye(v), ones), np.kron(ones, np.eye(v))])
    found = linprog(c.flatten().numpy(), A_eq=margins, b_eq=torch.cat([p, tau]).numpy(), method="highs")
    return float(found.fun)
