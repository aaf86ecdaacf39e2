"""Logit level: factors λ_i on the logits, norms of queries and keys, and the ALiBi bias.

Sources: log n scaling (kexue.fm/archives/8823, 9948); KeyNorm (kexue.fm/archives/9859); cosine attention
(kexue.fm/archives/9812); ALiBi (arXiv 2108.12409).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from lmlab.rope.method import Kind, Method, positive, whole


@dataclass(frozen=True, repr=False)
class LogN(Method):
    """λ_i = ln(i+1)/ln T₀, at least 1 if clip; i is the absolute position. train_length=None is that of the
    rotary positions."""

    train_length: int | None = None
    clip: bool = True
    kind: ClassVar[Kind] = "logit"

    def __post_init__(self) -> None:
        if self.train_length is not None:
            whole(self, "train_length", 2)


@dataclass(frozen=True, repr=False)
class Temperature(Method):
    """λ = factor on every logit."""

    factor: float
    kind: ClassVar[Kind] = "logit"

    def __post_init__(self) -> None:
        positive(self, "factor")


@dataclass(frozen=True, repr=False)
class KeyNorm(Method):
    """k/|k| over the whole head, default scale 1: for models trained so."""

    kind: ClassVar[Kind] = "norm"


@dataclass(frozen=True, repr=False)
class CosA(Method):
    """q/|q| and k/|k|, λ = 4 ln n with n = T₀/2 (None), a number, or i + 1 ("position"); default scale 1.
    For models trained so."""

    n: float | Literal["position"] | None = None
    kind: ClassVar[Kind] = "norm"

    def __post_init__(self) -> None:
        if isinstance(self.n, str):
            if self.n != "position":
                raise ValueError(f'CosA: n must be a number > 1, "position" or None, got {self.n!r}')
        else:
            positive(self, "n", optional=True)
            if self.n is not None and self.n <= 1:
                raise ValueError(f'CosA: n must be a number > 1, "position" or None, got {self.n!r}')


@dataclass(frozen=True, repr=False)
class ALiBi(Method):
    """Bias −m_x·r for head x, r the true distance; m_x = 2^(−8(x+1)/h) where slopes=None. Needs no rotary."""

    slopes: tuple[float, ...] | None = None
    kind: ClassVar[Kind] = "bias"

    def __post_init__(self) -> None:
        if self.slopes is not None:
            slopes = tuple(float(x) for x in self.slopes)
            if not slopes or not all(math.isfinite(x) for x in slopes):
                raise ValueError(f"ALiBi: slopes must be one finite number a head, got {self.slopes!r}")
            object.__setattr__(self, "slopes", slopes)

    def for_heads(self, heads: int) -> tuple[float, ...]:
        """m_x of every head."""
        if self.slopes is None:
            return tuple(2.0 ** (-8 * (x + 1) / heads) for x in range(heads))
        if len(self.slopes) != heads:
            raise ValueError(
                f"ALiBi: slopes must have one number for each of {heads} heads, got {len(self.slopes)}"
            )
        return self.slopes
