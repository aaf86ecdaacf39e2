"""A Trainer whose loss is fused with the model's head: transformers' own, or TRL's SFTTrainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmlab.losses import LinearLoss, LossStats, causal_lm_loss


class FusedLossMixin:
    """In front of a Trainer class, computes its loss by `criterion`, without the logits.

    Gradient accumulation, several processes and autocast are treated as the overridden method treats them.
    What is logged gains ce, accuracy and, with a cost, emo: means over the tokens since the last log.
    There are no logits at evaluation, so `compute_metrics` is refused.
    """

    criterion: LinearLoss

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of one batch; with return_outputs also {"loss": …}, all of the outputs that is kept."""
        _refuse(self)
        self.criterion.to(self.args.device)
        with self.accelerator.autocast():
            loss = causal_lm_loss(model, inputs, self.criterion, num_items=num_items_in_batch)
        # Trainer divides by the accumulation steps what isn't divided by the items of the whole batch.
        self.loss_is_scaled_for_ga = num_items_in_batch is not None
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # Gradients are averaged over processes, and the items were counted over all of them.
            loss = loss * (self.accelerator.num_processes // _tensor_parallel_size(self))
        stats = self.criterion.last_stats
        assert stats is not None
        sums = self.__dict__.setdefault("_fused_sums", {})
        phase = "train" if model.training else "eval"
        sums[phase] = sums.get(phase, 0) + _sums(stats)
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer.log, with the statistics of the batches since the last log beside the loss."""
        sums = self.__dict__.get("_fused_sums", {})
        for key in [key for key in logs if key == "loss" or key.endswith("_loss")]:
            phase = "train" if key in ("loss", "train_loss") else "eval"
            if phase in sums:
                total = self.accelerator.reduce(sums.pop(phase), "sum").tolist()
                if key != "train_loss":  # the summary at the end, in which no mean of some last steps belongs
                    logs |= {f"{key[:-4]}{name}": value for name, value in _means(total).items()}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def fused_trainer(trainer: type, criterion: LinearLoss) -> Any:
    """A subclass of `trainer` (transformers' Trainer, TRL's SFTTrainer) that minimises `criterion`.

    Use the class as before: fused_trainer(Trainer, LinearLoss(EMO(), cost))(model=…, args=…, …).train().
    Raises TypeError if trainer has no compute_loss or criterion is no LinearLoss, ValueError if the criterion
    doesn't give one mean.
    """
    if not isinstance(trainer, type) or not hasattr(trainer, "compute_loss"):
        raise TypeError(f"trainer must be a Trainer class, such as transformers.Trainer; got {trainer!r}")
    if not isinstance(criterion, LinearLoss):
        raise TypeError(
            f"criterion must be a LinearLoss, such as LinearLoss(); got {type(criterion).__name__}"
        )
    if criterion.reduction != "mean":
        raise ValueError(
            f'criterion has reduction={criterion.reduction!r}; a Trainer needs LinearLoss(reduction="mean")'
        )
    return type(f"Fused{trainer.__name__}", (FusedLossMixin, trainer), {"criterion": criterion})


def _refuse(trainer: Any) -> None:
    """What a Trainer was told and the fused loss would silently leave undone."""
    if trainer.compute_metrics is not None:
        raise ValueError(
            "compute_metrics needs logits, and the fused loss never makes them: leave compute_metrics out "
            "(eval_loss, eval_ce and eval_accuracy are logged), or evaluate with a plain Trainer"
        )
    if trainer.compute_loss_func is not None:
        raise ValueError("compute_loss_func and a fused loss are two losses: leave compute_loss_func out")
    if trainer.args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={trainer.args.label_smoothing_factor} is of the Trainer's own loss: "
            f"use LinearLoss(…, label_smoothing={trainer.args.label_smoothing_factor})"
        )
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"the model is split over {trainer.args.n_gpu} devices by DataParallel, which the fused loss doesn't "
            "support: start one process a device, by torchrun or accelerate launch"
        )


def _tensor_parallel_size(trainer: Any) -> int:
    """1 in versions of transformers that know no tensor parallelism."""
    return trainer.get_tp_size() if hasattr(trainer, "get_tp_size") else 1


def _sums(stats: LossStats) -> Tensor:
    """Tokens, ce, correct and emo (NaN without a cost), summed: nothing is read back from the device."""
    ce = stats.ce.sum()
    emo = torch.full_like(ce, torch.nan) if stats.emo is None else stats.emo.sum()
    return torch.stack([torch.full_like(ce, stats.count), ce, stats.correct.sum().to(ce.dtype), emo])


def _means(sums: list[float]) -> dict[str, float]:
    count, ce, correct, emo = sums
    if not count:
        return {}
    means = {"ce": ce / count, "accuracy": correct / count, "emo": emo / count}
    return {name: value for name, value in means.items() if name != "emo" or emo == emo}
