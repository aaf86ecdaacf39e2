"""Hybrid decoders: short windows in most layers, full attention in few (kexue.fm/archives/9603, 9731)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LayerPosition:
    """How a layer sees: `window` keys (None: all of them), with rotary positions or without."""

    window: int | None
    rotary: bool


def hybrid(
    layers: int,
    train_length: int,
    *,
    kind: Literal["none", "hwfa", "hwfa2"] = "hwfa2",
    window: int | None = None,
    full: int = 1,
) -> tuple[LayerPosition, ...]:
    """The layers of a hybrid, first to last.

    "hwfa": all layers but the last have rotary positions and a window w̃, (w̃−1)(layers−1)+1 = ¾T₀; the
    last is full without rotary. "hwfa2": w̃ = 2.5·T₀/layers, with `full` (1 or 2) full rotary layers in the
    middle; the extension goes to those at inference. "none": full rotary layers. `window` replaces w̃.
    """
    if kind not in ("none", "hwfa", "hwfa2"):
        raise ValueError(f'kind must be "none", "hwfa" or "hwfa2", got {kind!r}')
    if layers < 1:
        raise ValueError(f"layers must be >= 1, got {layers}")
    if train_length < 1:
        raise ValueError(f"train_length must be >= 1, got {train_length}")
    if window is not None and window < 1:
        raise ValueError(f"window must be >= 1, got {window}")
    everything = LayerPosition(None, True)
    if kind == "none":
        return (everything,) * layers
    if kind == "hwfa":
        if layers < 2:
            raise ValueError(f'layers must be >= 2 for kind="hwfa", got {layers}')
        width = window or 1 + max(1, round((0.75 * train_length - 1) / (layers - 1)))
        return (LayerPosition(width, True),) * (layers - 1) + (LayerPosition(None, False),)
    if not 1 <= full < layers:
        raise ValueError(f"full must be at least 1 and below layers ({layers}), got {full}")
    width = window or max(1, round(2.5 * train_length / layers))
    before = (layers - full) // 2
    narrow = LayerPosition(width, True)
    return (narrow,) * before + (everything,) * full + (narrow,) * (layers - full - before)
