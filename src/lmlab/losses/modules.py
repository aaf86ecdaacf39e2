"""The losses as modules: the options once, the tensors at each call."""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from lmlab.losses import check
from lmlab.losses.cost import Cost
from lmlab.losses.fused import linear_loss
from lmlab.losses.kinds import CE, Loss
from lmlab.losses.logits import logits_loss
from lmlab.losses.stats import LossStats

_CE = CE()


class _Criterion(nn.Module):
    """What both modules hold: checked options, the cost as a child, the statistics of the last call."""

    last_stats: LossStats | None

    def __init__(
        self,
        loss: Loss | str = _CE,
        cost: Cost | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        budget: int = 64 * 2**20,
    ) -> None:
        super().__init__()
        self.loss = check.options(
            loss,
            cost,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            reduction=reduction,
            budget=budget,
        )
        self.cost = cost
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.softcap = softcap
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.budget = budget
        self.last_stats = None

    def extra_repr(self) -> str:
        return f"{self.loss}, reduction={self.reduction!r}"


class LinearLoss(_Criterion):
    """`linear_loss` with fixed options; `last_stats` holds the statistics of the last call, for logging."""

    def forward(
        self,
        hidden: Float[Tensor, "*batch d"],
        weight: Float[Tensor, "v d"],
        target: Int64[Tensor, "*batch"],
        *,
        bias: Float[Tensor, " v"] | None = None,
        softcap: float | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """The loss of hidden [… d] through the head weight [v d], bias [v]; softcap overrides ours."""
        value, self.last_stats = linear_loss(
            hidden,
            weight,
            target,
            self.loss,
            cost=self.cost,
            bias=bias,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap if softcap is None else softcap,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            num_items=num_items,
            budget=self.budget,
            return_stats=True,
        )
        return value


class LogitsLoss(_Criterion):
    """`logits_loss` with fixed options, for models whose logits exist anyway."""

    def forward(
        self,
        logits: Float[Tensor, "*batch v"],
        target: Int64[Tensor, "*batch"],
        *,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """The loss of logits [… v]."""
        value, self.last_stats = logits_loss(
            logits,
            target,
            self.loss,
            cost=self.cost,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            num_items=num_items,
            budget=self.budget,
            return_stats=True,
        )
        return value
