"""A training run as TensorBoard sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmlab.train.loop import Step


def tensorboard(directory: str | Path) -> Callable[[Step], None]:
    """An `on_step` for `train` that writes every step's numbers as scalars below `directory`.

    loss, lr, grad_norm, held_out and what losses and mixers report, over steps; tokens a second over this call.
    A run that goes on at a checkpoint hides what an earlier process wrote beyond it. Raises ImportError, which
    says what to install, without TensorBoard.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("tensorboard() needs TensorBoard: pip install 'lmlab[track]'") from None
    writer: SummaryWriter | None = None
    first = 0

    def on_step(step: Step) -> None:
        nonlocal writer, first
        if writer is None:
            writer = SummaryWriter(str(directory), purge_step=step.step)
            first = step.step - 1
        numbers = {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm, **step.metrics}
        if step.held_out is not None:
            numbers["held_out"] = step.held_out
        if step.seconds > 0:
            numbers["tokens_per_second"] = (step.step - first) * (step.tokens // step.step) / step.seconds
        for name, value in numbers.items():
            writer.add_scalar(f"train/{name}", value, step.step)
        writer.flush()

    return on_step
