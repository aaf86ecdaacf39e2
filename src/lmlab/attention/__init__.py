"""Attention: causal softmax attention under any length extension, scale rules, and quantised keys."""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.attention.banded import attend as attend
    from lmlab.attention.options import VQOptions as VQOptions

__all__ = ["VQOptions", "attend"]

__getattr__, __dir__ = door(__name__, {"banded": ["attend"], "options": ["VQOptions"]})
