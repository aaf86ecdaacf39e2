"""Options of the attention mixers: plain values for recipes, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class VQOptions:
    """Attention over quantised keys (`VQAttention`).

    codes: size of each key head's codebook. position: "bias" (a Toeplitz bias for distances below
    `window`), "rotary" (distances min(i−j, window), base `rope_base`) or "none". gate: the output times
    silu(W_g x). normalise: q and k RMS-normalised. key_grad: the queries that a key hears. decay, revive: the
    codebook's moving average, and the share of the mean count under which a code is dead. commitment: weight
    of the loss that pulls keys to their codes. block: rows a block, None picks by codes.
    """

    codes: int = 256
    position: Literal["bias", "rotary", "none"] = "bias"
    window: int = 128
    rope_base: float = 1e4
    gate: bool = False
    normalise: bool = True
    key_grad: Literal["all", "local", "none"] = "local"
    decay: float = 0.99
    commitment: float = 1e-4
    revive: float = 0.05
    block: int | None = None

    def __post_init__(self) -> None:
        if self.position not in ("bias", "rotary", "none"):
            raise ValueError(f'VQOptions: position must be "bias", "rotary" or "none", got {self.position!r}')
        if self.key_grad not in ("all", "local", "none"):
            raise ValueError(f'VQOptions: key_grad must be "all", "local" or "none", got {self.key_grad!r}')
        for name in ("codes", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"VQOptions: {name} must be >= 1, got {getattr(self, name)!r}")
        if self.block is not None and self.block < 1:
            raise ValueError(f"VQOptions: block must be >= 1 or None, got {self.block!r}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"VQOptions: decay must be in [0, 1), got {self.decay!r}")
        if self.rope_base <= 0:
            raise ValueError(f"VQOptions: rope_base must be > 0, got {self.rope_base!r}")
        for name in ("commitment", "revive"):
            if getattr(self, name) < 0:
                raise ValueError(f"VQOptions: {name} must be >= 0, got {getattr(self, name)!r}")
