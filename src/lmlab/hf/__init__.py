"""Hugging Face models: read longer inputs than they were trained on, and take it back."""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.hf.extension import as_model as as_model
    from lmlab.hf.extension import extend as extend
    from lmlab.hf.extension import restore as restore
    from lmlab.hf.extension import rotary_of as rotary_of

_PLACES = {"extension": ["as_model", "extend", "restore", "rotary_of"]}

__all__ = ["as_model", "extend", "restore", "rotary_of"]

__getattr__, __dir__ = door(__name__, _PLACES)
