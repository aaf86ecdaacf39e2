"""What each attention layer does about positions: window, rotary, and the extension used at inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lmlab.model.config import DecoderConfig


@dataclass(frozen=True)
class LayerPosition:
    """One attention layer: local window (None: full) and whether its heads are rotated."""

    window: int | None
    rotary: bool


def layer_positions(config: DecoderConfig) -> list[LayerPosition | None]:
    """For every layer its position plan; None where the mixer isn't "attention"."""
    attention_layers = [layer for layer, name in enumerate(config.layer_mixers) if name == "attention"]
    plans: list[LayerPosition | None] = [None] * config.n_layers
    if config.hybrid == "none" or not attention_layers:
        for layer in attention_layers:
            plans[layer] = LayerPosition(config.attention.window, config.position.kind == "rope")
        return plans
    from lmlab.rope import hybrid

    chosen = hybrid(len(attention_layers), config.max_length, kind=config.hybrid)
    for layer, plan in zip(attention_layers, chosen, strict=True):
        plans[layer] = LayerPosition(plan.window, plan.rotary)
    return plans


class RotaryTable:
    """cos and sin of position·θ for RoPE, float64 angles, for as many positions as were asked for."""

    def __init__(self, dim: int, base: float) -> None:
        self.dim = dim
        self.base = base
        self._tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def __call__(
        self, length: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Float[Tensor, "length m"], Float[Tensor, "length m"]]:
        """The first `length` rows in `dtype`."""
        cos, sin = self._tables.get((dtype, device), (None, None))
        if cos is None or sin is None or cos.shape[0] < length:
            size = max(length, 2 * (0 if cos is None else cos.shape[0]))
            # Made in generation, used in training: never an inference tensor.
            with torch.inference_mode(False):
                inverse = self.base ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
                angles = torch.arange(size, dtype=torch.float64)[:, None] * inverse
                cos = angles.cos().to(device=device, dtype=dtype)
                sin = angles.sin().to(device=device, dtype=dtype)
            self._tables[dtype, device] = (cos, sin)
        return cos[:length], sin[:length]

    def __deepcopy__(self, memo: dict[int, Any]) -> RotaryTable:
        return RotaryTable(self.dim, self.base)
