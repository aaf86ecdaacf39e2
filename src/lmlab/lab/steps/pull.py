"""How hard each loss pulls its target up, by how likely the model finds it: what tells the family apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from lmlab.train import LossConfig

PROBABILITIES = (0.001, 0.003, 0.01, 0.03, *(k / 20 for k in range(1, 20)), 0.97, 0.99)


def pulls(
    head: Float[Tensor, "v d"], targets: Sequence[int], losses: Mapping[str, LossConfig]
) -> dict[str, Any]:
    """−∂loss/∂(logit of the target) at each probability of the target, the rest of it spread evenly over the
    other tokens; the mean over `targets`, between which only a loss with a transport cost tells a difference."""
    from lmlab.losses import logits_loss
    from lmlab.train.objective import build_criterion

    v = head.shape[0]
    target = torch.tensor(targets, dtype=torch.int64).repeat(len(PROBABILITIES))
    odds = [math.log(p / (1 - p) * (v - 1)) for p in PROBABILITIES]
    start = torch.zeros(len(target), v)
    start[torch.arange(len(target)), target] = torch.tensor(odds).repeat_interleave(len(targets))
    rows = []
    for label, config in losses.items():
        criterion = build_criterion(config, head)
        logits = start.clone().requires_grad_()
        told: Any = logits_loss(
            logits,
            target,
            criterion.loss,
            cost=criterion.cost,
            label_smoothing=criterion.label_smoothing,
            z_loss=criterion.z_loss,
            reduction="sum",
        )
        (slope,) = torch.autograd.grad(told, logits)
        pull = -slope.gather(1, target[:, None]).reshape(len(PROBABILITIES), len(targets)).mean(1)
        rows.append({"label": label, "pull": pull.tolist()})
    return {"probabilities": list(PROBABILITIES), "losses": rows}
