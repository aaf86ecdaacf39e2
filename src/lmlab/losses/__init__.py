"""Cross-entropy, EMO and their relatives, computed together with the output head: the logits are never held.

>>> from lmlab.losses import linear_loss, linear_emo_loss, EMO, Cost
>>> loss = linear_loss(hidden, head.weight, target)                        # cross-entropy, no logits
>>> loss = linear_emo_loss(hidden, head.weight, target, Cost.frozen(head.weight), EMO())
"""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.losses.causal import causal_lm_loss as causal_lm_loss
    from lmlab.losses.cost import Cost as Cost
    from lmlab.losses.fused import linear_cross_entropy as linear_cross_entropy
    from lmlab.losses.fused import linear_emo_loss as linear_emo_loss
    from lmlab.losses.fused import linear_loss as linear_loss
    from lmlab.losses.kinds import CE as CE
    from lmlab.losses.kinds import DFT as DFT
    from lmlab.losses.kinds import EMO as EMO
    from lmlab.losses.kinds import TVD as TVD
    from lmlab.losses.kinds import Focal as Focal
    from lmlab.losses.kinds import Loss as Loss
    from lmlab.losses.kinds import MixCE as MixCE
    from lmlab.losses.kinds import TaiLr as TaiLr
    from lmlab.losses.kinds import named_loss as named_loss
    from lmlab.losses.logits import emo_loss as emo_loss
    from lmlab.losses.logits import logits_loss as logits_loss
    from lmlab.losses.modules import LinearLoss as LinearLoss
    from lmlab.losses.modules import LogitsLoss as LogitsLoss
    from lmlab.losses.soft import linear_soft_emo_loss as linear_soft_emo_loss
    from lmlab.losses.soft import soft_emo_loss as soft_emo_loss
    from lmlab.losses.stats import LossStats as LossStats

__all__ = [
    "CE",
    "DFT",
    "EMO",
    "TVD",
    "Cost",
    "Focal",
    "LinearLoss",
    "LogitsLoss",
    "Loss",
    "LossStats",
    "MixCE",
    "TaiLr",
    "causal_lm_loss",
    "emo_loss",
    "linear_cross_entropy",
    "linear_emo_loss",
    "linear_loss",
    "linear_soft_emo_loss",
    "logits_loss",
    "named_loss",
    "soft_emo_loss",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "kinds": ["CE", "DFT", "EMO", "TVD", "Focal", "Loss", "MixCE", "TaiLr", "named_loss"],
        "stats": ["LossStats"],
        "cost": ["Cost"],
        "fused": ["linear_cross_entropy", "linear_emo_loss", "linear_loss"],
        "logits": ["emo_loss", "logits_loss"],
        "soft": ["linear_soft_emo_loss", "soft_emo_loss"],
        "modules": ["LinearLoss", "LogitsLoss"],
        "causal": ["causal_lm_loss"],
    },
)
