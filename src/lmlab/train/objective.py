"""What is minimised: the fused head-and-loss of `lmlab.losses` plus the mixers' auxiliary losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmlab.losses import Cost, LinearLoss, named_loss
from lmlab.model import CheckpointError, ConfigError, Decoder, Hidden
from lmlab.model.checkpoint import read_tensors
from lmlab.train.config import CostConfig, LossConfig

_OF_THE_CALL = ("label_smoothing", "z_loss", "budget")


def build_criterion(config: LossConfig, head: Float[Tensor, "v d"]) -> LinearLoss:
    """The LinearLoss that `[loss]` describes; a cost of kind "head" freezes `head` as it is now.

    Raises ConfigError for an unknown name or an option that the named loss hasn't.
    """
    given = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in ("name", "cost")
    }
    given = {key: value for key, value in given.items() if value is not None}
    call = {key: given.pop(key) for key in _OF_THE_CALL if key in given}
    try:
        loss = named_loss(config.name, **given)
    except (TypeError, ValueError) as error:
        known = next((key for key in given if f"'{key}'" in str(error)), "name")
        raise ConfigError(f"loss.{known}", f"isn't accepted: {error}") from None
    return LinearLoss(loss, _cost(config.cost, head) if config.name.startswith("emo") else None, **call)


def _cost(config: CostConfig, head: Tensor) -> Cost:
    if config.kind == "zero_one":
        return Cost.zero_one(head.shape[0])
    if config.kind == "live":
        return Cost.live(head, center=config.center)
    embedding = head
    if config.path is not None:
        tensors = read_tensors(Path(config.path))
        if len(tensors) != 1:
            raise CheckpointError(f"{config.path} must hold one tensor [v k], found {sorted(tensors)}")
        (embedding,) = tensors.values()
    return Cost.frozen(embedding, center=config.center, rank=config.rank)


class Objective(nn.Module):
    """(ids, targets) -> (loss + aux_weight · aux, loss): what data-parallel training wraps."""

    def __init__(
        self,
        model: Decoder,
        criterion: LinearLoss,
        aux_weight: float,
        hidden: Callable[[Tensor], Hidden] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.aux_weight = aux_weight
        self._hidden: Any = hidden or model.hidden

    def forward(self, ids: Int[Tensor, "b t"], targets: Int[Tensor, "b t"]) -> tuple[Tensor, Tensor]:
        h, _, aux = self._hidden(ids)
        loss = self.criterion(h, self.model.head, targets)
        return loss + self.aux_weight * aux, loss.detach()


@torch.no_grad()
def held_out_loss(model: Decoder, batches: Any, precision: torch.dtype | None) -> float:
    """Mean cross-entropy in nats a token over (ids, targets) batches."""
    total, count = 0.0, 0
    training = model.training
    model.eval()
    criterion = LinearLoss(reduction="sum")
    device = model.head.device
    for ids, targets in batches:
        with autocast(device, precision):
            h = model.hidden(ids.to(device)).h
            total += float(criterion(h, model.head, targets.to(device)))
        count += targets.numel()
    model.train(training)
    return total / count


def autocast(device: torch.device, precision: torch.dtype | None) -> torch.autocast:
    """Matrix products in `precision`; None: as they are."""
    return torch.autocast(device.type, dtype=precision or torch.bfloat16, enabled=precision is not None)
