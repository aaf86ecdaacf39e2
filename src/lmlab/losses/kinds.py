"""The family of losses as values: which one, with which constants. This file knows no torch.

p_t is the probability of the target, ce = -log p_t, ce_eps the label-smoothed ce, emo = sum_j p_j c[j, t] the
cost of transporting the model's distribution p into the label, sg(.) "treated as a constant".
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any


def _within(loss: str, name: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        span = f">= {low:g} and finite" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{loss}({name}={value!r}): {name} must be {span}")


@dataclass(frozen=True)
class CE:
    """Cross-entropy: ce_eps."""


@dataclass(frozen=True)
class TVD:
    """Smooth accuracy, the total variation distance to the label: 1 - p_t."""


@dataclass(frozen=True)
class DFT:
    """sg(p_t) * ce_eps; without smoothing its gradient is TVD's."""


@dataclass(frozen=True)
class Focal:
    """(1 - p_t)^gamma * ce_eps; the gradient goes through the weight too (Lin et al., arXiv 1708.02002)."""

    gamma: float = 2.0

    def __post_init__(self) -> None:
        _within("Focal", "gamma", self.gamma, 0.0, math.inf)


@dataclass(frozen=True)
class TaiLr:
    """sg(clamp(p_t / (gamma + (1 - gamma) p_t), floor, 1)) * ce_eps (Ji et al., 2023)."""

    gamma: float = 1e-5
    floor: float = 0.2

    def __post_init__(self) -> None:
        _within("TaiLr", "gamma", self.gamma, 0.0, 1.0)
        _within("TaiLr", "floor", self.floor, 0.0, 1.0)


@dataclass(frozen=True)
class MixCE:
    """(eta + (1 - eta) sg(p_t)) * ce_eps (Zhang et al., arXiv 2305.16958)."""

    eta: float = 0.5

    def __post_init__(self) -> None:
        _within("MixCE", "eta", self.eta, 0.0, 1.0)


@dataclass(frozen=True)
class EMO:
    """Optimal transport with cross-entropy (Ren et al., arXiv 2310.04691; Su, article 9797). Needs a cost.

    balance "none":  ce * ce_eps + emo * e
    balance "emo":   (ce_eps + sg(min(ce / (e + 1e-10), clamp)) * e) / 2
    balance "ce":    e + sg(min(e / (ce + 1e-10), clamp)) * ce_eps
    with e = emo, or emo + sg(p_t) if `shift`. `clamp=None`: the ratio isn't limited. The fields `ce` and
    `emo` are the weights of balance "none" only.
    """

    balance: str = "emo"
    clamp: float | None = 3.0
    shift: bool = False
    ce: float = 1.0
    emo: float = 1.0

    def __post_init__(self) -> None:
        if self.balance not in ("none", "emo", "ce"):
            raise ValueError(f'EMO(balance={self.balance!r}): balance must be "none", "emo" or "ce"')
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"EMO(clamp={self.clamp!r}): clamp must be > 0, or None for no limit")
        for name, value in (("ce", self.ce), ("emo", self.emo)):
            if not math.isfinite(value):
                raise ValueError(f"EMO({name}={value!r}): {name} must be finite")
            if self.balance != "none" and value != 1.0:
                raise ValueError(
                    f'EMO(balance={self.balance!r}, {name}={value!r}): {name} is a weight of balance="none" '
                    f'only; write EMO("none", {name}={value!r})'
                )


Loss = CE | TVD | DFT | Focal | TaiLr | MixCE | EMO

_NAMED: dict[str, Loss] = {
    "ce": CE(),
    "tvd": TVD(),
    "dft": DFT(),
    "focal": Focal(),
    "tailr": TaiLr(),
    "mixce": MixCE(),
    "emo": EMO(),
    "emo-paper": EMO(clamp=None),
    "emo-paper-adaptive": EMO(clamp=None, shift=True),
    "emo-continual": EMO(shift=True),
    "emo2": EMO("ce", clamp=None),
    "emo2-adaptive": EMO("ce", clamp=None, shift=True),
}


def named_loss(name: str, **overrides: Any) -> Loss:
    """The loss that the literature calls `name`, with some of its fields changed.

    Names: "ce", "tvd", "dft", "focal", "tailr", "mixce"; "emo", "emo-paper", "emo-paper-adaptive",
    "emo-continual", "emo2", "emo2-adaptive". ValueError for another name or a field that the loss lacks.
    """
    if name not in _NAMED:
        raise ValueError(f"loss {name!r} is unknown; known: " + ", ".join(f'"{known}"' for known in _NAMED))
    loss = _NAMED[name]
    accepted = [field.name for field in fields(loss)]
    for key in overrides:
        if key not in accepted:
            takes = ", ".join(accepted) or "no fields"
            raise ValueError(f"{type(loss).__name__} ({name!r}) has no field {key!r}; it has: {takes}")
    return replace(loss, **overrides)


def as_loss(loss: Loss | str) -> Loss:
    """A loss, given by value or by name."""
    if isinstance(loss, str):
        return named_loss(loss)
    if not isinstance(loss, Loss):
        raise ValueError(f'loss must be a dataclass of lmlab.losses or a name such as "ce"; got {loss!r}')
    return loss
