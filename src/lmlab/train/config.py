"""How a model is trained, as frozen dataclasses of plain values. No torch is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmlab.model.fields import check_fields, from_plain, require, to_plain


@dataclass(frozen=True)
class CostConfig:
    """The transport cost of an EMO loss (`lmlab.losses.Cost`).

    kind: "head" (the head, frozen when training starts), "live" (the head as it is), "zero_one", or "file"
    (the one matrix in the safetensors file `path`: an embedding [v k]). center: subtract the mean row.
    rank: keep that many directions.
    """

    kind: Literal["head", "live", "zero_one", "file"] = "head"
    center: bool = False
    rank: int | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.rank is None or self.rank >= 1, "rank", "an integer >= 1 or left out", self.rank)
        require(
            (self.kind == "file") == (self.path is not None),
            "path",
            'given when kind = "file" and only then',
            self.path,
        )
        require(
            self.rank is None or self.kind in ("head", "file"),
            "rank",
            'left out unless kind is "head" or "file"',
            self.rank,
        )


@dataclass(frozen=True)
class LossConfig:
    """A loss of `lmlab.losses` by name ("ce", "emo", "focal", ...); None: that loss's own default."""

    name: str = "ce"
    balance: Literal["none", "emo", "ce"] | None = None
    clamp: float | None = None
    shift: bool | None = None
    ce: float | None = None
    emo: float | None = None
    gamma: float | None = None
    floor: float | None = None
    eta: float | None = None
    label_smoothing: float | None = None
    z_loss: float | None = None
    budget: int | None = None
    cost: CostConfig = CostConfig()

    def __post_init__(self) -> None:
        check_fields(self)
        smoothing = self.label_smoothing
        require(smoothing is None or 0 <= smoothing < 1, "label_smoothing", "a number in [0, 1)", smoothing)
        require(self.z_loss is None or self.z_loss >= 0, "z_loss", "a number >= 0", self.z_loss)
        require(self.budget is None or self.budget >= 1, "budget", "a number of bytes >= 1", self.budget)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LossConfig:
        """From plain values; an unknown key or a wrong value is a ConfigError that names it."""
        return from_plain(cls, values)


@dataclass(frozen=True)
class TrainConfig:
    """One training run. batch_size: sequences of `length` a step, over all processes; micro_batch: sequences
    at a time in one process (None: all). warmup, decay: fractions of `steps`. save_every: steps between
    checkpoints, of which the newest `keep` stay."""

    steps: int = 400
    batch_size: int = 16
    length: int = 256
    micro_batch: int | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-3
    muon_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float | None = 1.0
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: float = 0.05
    decay: float = 0.2
    min_lr_ratio: float = 0.1
    loss: LossConfig = LossConfig()
    aux_weight: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    save_every: int = 50
    keep: int = 2
    eval_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for key in ("steps", "seed"):
            require(getattr(self, key) >= 0, key, "an integer >= 0", getattr(self, key))
        for key in ("batch_size", "length", "save_every", "keep", "eval_every"):
            require(getattr(self, key) >= 1, key, "an integer >= 1", getattr(self, key))
        for key in ("lr", "muon_lr"):
            require(getattr(self, key) > 0, key, "a number > 0", getattr(self, key))
        for key in ("weight_decay", "aux_weight"):
            require(getattr(self, key) >= 0, key, "a number >= 0", getattr(self, key))
        for key in ("warmup", "decay", "min_lr_ratio"):
            require(0 <= getattr(self, key) <= 1, key, "a number in [0, 1]", getattr(self, key))
        require(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers in [0, 1)", self.betas)
        require(self.clip is None or self.clip > 0, "clip", "a number > 0 or left out", self.clip)
        micro = self.micro_batch
        require(
            micro is None or (micro >= 1 and self.batch_size % micro == 0),
            "micro_batch",
            f"a divisor of batch_size = {self.batch_size}",
            micro,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """From plain values; an unknown key or a wrong value is a ConfigError that names it."""
        return from_plain(cls, values)
