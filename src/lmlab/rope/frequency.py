"""Frequency level: methods that change the angles θ_m of the rotary pairs, in plain Python floats.

Sources: position interpolation (arXiv 2306.15595); NTK-aware, -fixed and -mixed scaling
(kexue.fm/archives/9675, 9706); YaRN (arXiv 2309.00071); LongRoPE (arXiv 2402.13753); Llama 3.1's rule;
p-RoPE (arXiv 2410.06205). Letters: D rotary dims, T₀ train length, n number of keys, s factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lmlab.rope.method import Kind, Method, positive

Angles = tuple[list[float], float]  # θ'_m, and the factor a (logits are multiplied by a²)


@dataclass(frozen=True, repr=False)
class FrequencyMethod(Method):
    """A method that maps the trained θ to new ones."""

    kind: ClassVar[Kind] = "frequency"
    moves: ClassVar[bool] = False  # whether θ' depends on n whatever the factor

    @property
    def depends_on_length(self) -> bool:
        """Whether θ' moves as the number of keys grows."""
        return self.moves or getattr(self, "factor", 1.0) is None

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        """θ' and a for the trained `theta` (D/2 values) at n keys."""
        raise NotImplementedError


def _scale(factor: float | None, train_length: int, n: int) -> float:
    """s: the factor, or where it is None, just what n keys need."""
    return max(1.0, n / train_length) if factor is None else factor


def _rebased(theta: Sequence[float], ratio: float) -> list[float]:
    """θ after base → base·ratio^(D/(D−2)): pair m is divided by ratio^(2m/(D−2)), so that the slowest pair
    is divided by exactly `ratio`."""
    half = len(theta)
    return [t * ratio ** (-m / (half - 1)) if m else t for m, t in enumerate(theta)]


@dataclass(frozen=True, repr=False)
class PI(FrequencyMethod):
    """Position interpolation: θ_m / s. factor=None is max(1, n/T₀)."""

    factor: float | None = None

    def __post_init__(self) -> None:
        positive(self, "factor", optional=True)

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        s = _scale(self.factor, train_length, n)
        return [t / s for t in theta], 1.0


@dataclass(frozen=True, repr=False)
class NTKAware(FrequencyMethod):
    """base → base·s^(D/(D−2)): high frequencies stay, the lowest is interpolated by s."""

    factor: float | None = None

    def __post_init__(self) -> None:
        positive(self, "factor", optional=True)

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        return _rebased(theta, _scale(self.factor, train_length, n)), 1.0


@dataclass(frozen=True, repr=False)
class NTKFixed(FrequencyMethod):
    """θ_m / s^((m+1)/(D/2))."""

    factor: float | None = None

    def __post_init__(self) -> None:
        positive(self, "factor", optional=True)

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        s = _scale(self.factor, train_length, n)
        return [t / s ** ((m + 1) / len(theta)) for m, t in enumerate(theta)], 1.0


@dataclass(frozen=True, repr=False)
class NTKMixed(FrequencyMethod):
    """θ_m · exp(−ln s · ((m+1)/(D/2))^b): b = 1 is NTKFixed, b = 0 is PI."""

    factor: float | None = None
    b: float = 0.625

    def __post_init__(self) -> None:
        positive(self, "factor", optional=True)
        if isinstance(self.b, bool) or not isinstance(self.b, int | float) or not 0 <= self.b < math.inf:
            raise ValueError(f"NTKMixed: b must be a number >= 0, got {self.b!r}")

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        log_s = math.log(_scale(self.factor, train_length, n))
        return [t * math.exp(-log_s * ((m + 1) / len(theta)) ** self.b) for m, t in enumerate(theta)], 1.0


@dataclass(frozen=True, repr=False)
class DynamicNTK(FrequencyMethod):
    """base → base·(s·max(n,T₀)/T₀ − (s−1))^(D/(D−2)): moves with n, the identity for n ≤ T₀."""

    factor: float = 1.0
    moves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive(self, "factor")

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        if n <= train_length:
            return list(theta), 1.0
        return _rebased(theta, self.factor * n / train_length - (self.factor - 1)), 1.0


@dataclass(frozen=True, repr=False)
class ABF(FrequencyMethod):
    """Adjusted base frequency: a new base (over given inv_freq: the same change of base)."""

    base: float = 1e6

    def __post_init__(self) -> None:
        positive(self, "base")

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        ratio = self.base / base
        return [t * ratio ** (-m / len(theta)) for m, t in enumerate(theta)], 1.0


@dataclass(frozen=True, repr=False)
class YaRN(FrequencyMethod):
    """θ_m(γ_m + (1−γ_m)/s): pairs that turn more than `fast` times in T₀ stay, those that turn less than
    `slow` times are interpolated; a = 0.1 ln s + 1.

    ramp="turns" (paper and article) is linear in the turns T₀θ/2π; ramp="index" (what transformers and
    vLLM run) is linear in m. fast=None is scale-free, min(32, max(2, T₀/64)): the usual 32 from T₀ = 2048 on.
    `truncate` (index only) rounds the ramp's ends to whole m.
    """

    factor: float | None = None
    fast: float | None = None
    slow: float = 1.0
    ramp: Literal["turns", "index"] = "turns"
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        positive(self, "factor", optional=True)
        positive(self, "fast", optional=True)
        positive(self, "slow")
        positive(self, "attention_factor", optional=True)
        if self.ramp not in ("turns", "index"):
            raise ValueError(f'YaRN: ramp must be "turns" or "index", got {self.ramp!r}')
        if self.slow >= (2.0 if self.fast is None else self.fast):
            raise ValueError(
                f"YaRN: slow must be below fast (below 2 where fast is None), got slow={self.slow!r}, "
                f"fast={self.fast!r}"
            )

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        s = _scale(self.factor, train_length, n)
        a = self.attention_factor
        if a is None:
            a = 0.1 * math.log(s) + 1 if s > 1 else 1.0
        if s == 1:  # γ + (1 − γ) need not be 1 in floating point
            return list(theta), a
        keep = self.kept(theta, base, train_length)
        return [t * (g + (1 - g) / s) for t, g in zip(theta, keep, strict=True)], a

    def kept(self, theta: Sequence[float], base: float, train_length: int) -> list[float]:
        """γ_m: 1 where a pair stays as trained, 0 where it is interpolated."""
        fast = min(32.0, max(2.0, train_length / 64)) if self.fast is None else self.fast
        if self.ramp == "turns":
            turns = (train_length * t / (2 * math.pi) for t in theta)
            return [min(1.0, max(0.0, (x - self.slow) / (fast - self.slow))) for x in turns]
        dim = 2 * len(theta)

        def index(turns: float) -> float:  # the (real) m whose pair turns so often in T₀
            return dim * math.log(train_length / (2 * math.pi * turns)) / (2 * math.log(base))

        low, high = index(fast), index(self.slow)
        if self.truncate:
            low, high = float(math.floor(low)), float(math.ceil(high))
        low, high = max(low, 0.0), min(high, dim - 1.0)
        if low == high:
            high += 0.001
        return [1 - min(1.0, max(0.0, (m - low) / (high - low))) for m in range(len(theta))]


@dataclass(frozen=True, repr=False)
class LongRoPE(FrequencyMethod):
    """θ_m / short_m for n ≤ T₀, θ_m / long_m above; a = √(1 + ln s / ln T₀) for s > 1. Lists of D/2."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    factor: float | None = None
    attention_factor: float | None = None
    moves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("short", "long"):
            values = tuple(float(x) for x in getattr(self, name))
            if not values or not all(0 < x < math.inf for x in values):
                raise ValueError(f"LongRoPE: {name} must be D/2 numbers > 0, got {getattr(self, name)!r}")
            object.__setattr__(self, name, values)
        if len(self.short) != len(self.long):
            raise ValueError(
                f"LongRoPE: short and long must have one length, got {len(self.short)} and {len(self.long)}"
            )
        positive(self, "factor", optional=True)
        positive(self, "attention_factor", optional=True)

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        if len(self.short) != len(theta):
            raise ValueError(
                f"LongRoPE: short and long must have {len(theta)} numbers (half of the rotary dim "
                f"{2 * len(theta)}), got {len(self.short)}"
            )
        s = _scale(self.factor, train_length, n)
        a = self.attention_factor
        if a is None:
            a = math.sqrt(1 + math.log(s) / math.log(train_length)) if s > 1 else 1.0
        divisor = self.long if n > train_length else self.short
        return [t / x for t, x in zip(theta, divisor, strict=True)], a


@dataclass(frozen=True, repr=False)
class Llama3(FrequencyMethod):
    """Llama 3.1: wavelengths above T₀/low are interpolated, those below T₀/high stay, linear between."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self) -> None:
        for name in ("factor", "low", "high"):
            positive(self, name)
        if self.low >= self.high:
            raise ValueError(f"Llama3: low must be below high, got low={self.low!r}, high={self.high!r}")

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        def scaled(t: float) -> float:
            turns = train_length * t / (2 * math.pi)  # T₀ / wavelength
            if self.factor == 1 or turns > self.high:
                return t
            if turns < self.low:
                return t / self.factor
            g = (turns - self.low) / (self.high - self.low)
            return (1 - g) * t / self.factor + g * t

        return [scaled(t) for t in theta], 1.0


@dataclass(frozen=True, repr=False)
class Proportional(FrequencyMethod):
    """p-RoPE: θ_m / s for the first ⌊share·D/2⌋ pairs, the others are not rotated."""

    share: float = 0.25
    factor: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "factor")
        positive(self, "share")
        if self.share > 1:
            raise ValueError(f"Proportional: share must be in (0, 1], got {self.share!r}")

    def angles(self, theta: Sequence[float], base: float, train_length: int, n: int) -> Angles:
        rotated = int(self.share * len(theta))
        return [t / self.factor if m < rotated else 0.0 for m, t in enumerate(theta)], 1.0
