"""Hugging Face models: read longer inputs than they were trained on, and take it back; train by a fused loss."""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.hf.extension import as_model as as_model
    from lmlab.hf.extension import extend as extend
    from lmlab.hf.extension import restore as restore
    from lmlab.hf.extension import rotary_of as rotary_of
    from lmlab.hf.trainer import FusedLossMixin as FusedLossMixin
    from lmlab.hf.trainer import fused_trainer as fused_trainer

_PLACES = {
    "extension": ["as_model", "extend", "restore", "rotary_of"],
    "trainer": ["FusedLossMixin", "fused_trainer"],
}

__all__ = ["FusedLossMixin", "as_model", "extend", "fused_trainer", "restore", "rotary_of"]

__getattr__, __dir__ = door(__name__, _PLACES)
