"""Band level: methods that change the distance Δ(i, j) at which query i sees key j, or drop the key.

Sources: window and sinks (arXiv 2309.17453, 2308.16137); ReRoPE, Leaky and InvLeaky ReRoPE
(kexue.fm/archives/9708, 9728); Self-Extend (arXiv 2401.01325); dual chunk attention (arXiv 2402.17463).
r = i − j ≥ 0. The near band r < w keeps its distances; `far_query` and `far_key` are the positions at which
queries and keys meet beyond it, so that Δ = far_query(i) − far_key(j). They take and give numbers, arrays or
float64 tensors alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lmlab.rope.method import Kind, Method, positive, whole

Positions = Any  # a number, an array or a tensor of positions


@dataclass(frozen=True, repr=False)
class BandMethod(Method):
    """A method that changes Δ or keeps a part of the keys only."""

    kind: ClassVar[Kind] = "band"


@dataclass(frozen=True, repr=False)
class Window(BandMethod):
    """Keeps r < window, and the first `sinks` keys. A far sink sits at min(i, window + sinks − 1) − j, never
    at its true distance."""

    window: int
    sinks: int = 0

    def __post_init__(self) -> None:
        whole(self, "window", 1)
        whole(self, "sinks", 0)


@dataclass(frozen=True, repr=False)
class SplitMethod(BandMethod):
    """A band method of two parts: r below `window`, other distances above."""

    window: int

    def far_query(self, i: Positions) -> Positions:
        raise NotImplementedError

    def far_key(self, j: Positions) -> Positions:
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class ReRoPE(SplitMethod):
    """Δ = min(r, w): every far key stands at w. Advice: w = T₀/4 … T₀/2 (w = T₀ collapses)."""

    window: int

    def __post_init__(self) -> None:
        whole(self, "window", 1)

    def far_query(self, i: Positions) -> Positions:
        return i * 0 + self.window

    def far_key(self, j: Positions) -> Positions:
        return j * 0


@dataclass(frozen=True, repr=False)
class LeakyReRoPE(SplitMethod):
    """Δ = r below w, then w + (r−w)/k."""

    window: int
    k: float

    def __post_init__(self) -> None:
        whole(self, "window", 1)
        positive(self, "k")

    def far_query(self, i: Positions) -> Positions:
        return i / self.k + self.window * (1 - 1 / self.k)

    def far_key(self, j: Positions) -> Positions:
        return j / self.k


@dataclass(frozen=True, repr=False)
class InvLeakyReRoPE(SplitMethod):
    """Δ = r below w, then w + 2b(r−w): for *training* with b = L/T₀, w = T₀/4, so that plain rotary positions
    serve up to L afterwards. Its author reports it as unstable."""

    window: int
    b: float

    def __post_init__(self) -> None:
        whole(self, "window", 1)
        positive(self, "b")

    def far_query(self, i: Positions) -> Positions:
        return i * (2 * self.b) + self.window * (1 - 2 * self.b)

    def far_key(self, j: Positions) -> Positions:
        return j * (2 * self.b)


@dataclass(frozen=True, repr=False)
class SelfExtend(SplitMethod):
    """Δ = r below w, then ⌊i/G⌋ + w − ⌊w/G⌋ − ⌊j/G⌋ with G = group."""

    window: int
    group: int

    def __post_init__(self) -> None:
        whole(self, "window", 1)
        whole(self, "group", 1)

    def far_query(self, i: Positions) -> Positions:
        return i // self.group + (self.window - self.window // self.group)

    def far_key(self, j: Positions) -> Positions:
        return j // self.group


@dataclass(frozen=True, repr=False)
class DCA(BandMethod):
    """Dual chunk attention. With c = chunk − local and A = ⌊i/c⌋ − ⌊j/c⌋: A = 0: r; A = 1:
    min(i mod c + c, chunk) − (j mod c); A ≥ 2: chunk − (j mod c)."""

    chunk: int
    local: int

    def __post_init__(self) -> None:
        whole(self, "chunk", 1)
        whole(self, "local", 0)
        if self.local >= self.chunk:
            raise ValueError(
                f"DCA: local must be below chunk, got chunk={self.chunk!r}, local={self.local!r}"
            )

    @property
    def step(self) -> int:
        """c, the length of a chunk of keys."""
        return self.chunk - self.local
