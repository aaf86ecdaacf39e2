"""How training fails."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training stopped because the loss or the gradient is not finite; the last checkpoint stays.

    step: the one that failed (1 is the first), with its learning rate, loss and gradient norm.
    """

    def __init__(self, step: int, lr: float, loss: float, grad_norm: float) -> None:
        self.step, self.lr, self.loss, self.grad_norm = step, lr, loss, grad_norm
        super().__init__(
            f"loss {loss} and gradient norm {grad_norm} at step {step} (learning rate {lr:.3g}) are not "
            "finite; the last checkpoint is kept. Try a lower train.lr, a longer train.warmup, or train.clip"
        )
