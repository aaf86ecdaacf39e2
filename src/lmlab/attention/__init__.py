"""Attention: causal softmax attention under any length extension, scale rules, and quantised keys."""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.attention.banded import attend as attend
    from lmlab.attention.gradient import gradient_limit as gradient_limit
    from lmlab.attention.gradient import gradient_norm as gradient_norm
    from lmlab.attention.learned import LearnedScale as LearnedScale
    from lmlab.attention.options import VQOptions as VQOptions
    from lmlab.attention.row_measure import row_gradient as row_gradient
    from lmlab.attention.scale import EntropyInvariant as EntropyInvariant
    from lmlab.attention.scale import GradientScale as GradientScale
    from lmlab.attention.scale import InverseSqrt as InverseSqrt
    from lmlab.attention.scale import MuP as MuP
    from lmlab.attention.scale import ScaleRule as ScaleRule
    from lmlab.attention.scale import attention_scale as attention_scale
    from lmlab.attention.vq.assign import assign_codes as assign_codes
    from lmlab.attention.vq.codebook import Codebook as Codebook
    from lmlab.attention.vq.codebook import CodebookStats as CodebookStats
    from lmlab.attention.vq.function import vq_attention as vq_attention
    from lmlab.attention.vq.module import VQAttention as VQAttention
    from lmlab.attention.vq.module import step_codebooks as step_codebooks
    from lmlab.attention.vq.state import VQState as VQState

_PLACES = {
    "banded": ["attend"],
    "gradient": ["gradient_limit", "gradient_norm"],
    "learned": ["LearnedScale"],
    "options": ["VQOptions"],
    "row_measure": ["row_gradient"],
    "scale": ["EntropyInvariant", "GradientScale", "InverseSqrt", "MuP", "ScaleRule", "attention_scale"],
    "vq.assign": ["assign_codes"],
    "vq.codebook": ["Codebook", "CodebookStats"],
    "vq.function": ["vq_attention"],
    "vq.module": ["VQAttention", "step_codebooks"],
    "vq.state": ["VQState"],
}

__all__ = [
    "Codebook",
    "CodebookStats",
    "EntropyInvariant",
    "GradientScale",
    "InverseSqrt",
    "LearnedScale",
    "MuP",
    "ScaleRule",
    "VQAttention",
    "VQOptions",
    "VQState",
    "assign_codes",
    "attend",
    "attention_scale",
    "gradient_limit",
    "gradient_norm",
    "row_gradient",
    "step_codebooks",
    "vq_attention",
]

__getattr__, __dir__ = door(__name__, _PLACES)
