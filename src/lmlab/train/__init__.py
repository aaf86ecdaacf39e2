"""One training loop: batches that depend on the step alone, exact resume, one process or torchrun."""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.train.config import CostConfig as CostConfig
    from lmlab.train.config import LossConfig as LossConfig
    from lmlab.train.config import TrainConfig as TrainConfig
    from lmlab.train.data import TokenFile as TokenFile
    from lmlab.train.errors import TrainingError as TrainingError
    from lmlab.train.loop import Step as Step
    from lmlab.train.loop import TrainResult as TrainResult
    from lmlab.train.loop import train as train
    from lmlab.train.optim import build_optimizer as build_optimizer
    from lmlab.train.resume import weights_sha256 as weights_sha256
    from lmlab.train.schedule import learning_rate as learning_rate
    from lmlab.train.track import tensorboard as tensorboard

__all__ = [
    "CostConfig",
    "LossConfig",
    "Step",
    "TokenFile",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "build_optimizer",
    "learning_rate",
    "tensorboard",
    "train",
    "weights_sha256",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "config": ["CostConfig", "LossConfig", "TrainConfig"],
        "data": ["TokenFile"],
        "errors": ["TrainingError"],
        "loop": ["Step", "TrainResult", "train"],
        "optim": ["build_optimizer"],
        "resume": ["weights_sha256"],
        "schedule": ["learning_rate"],
        "track": ["tensorboard"],
    },
)
