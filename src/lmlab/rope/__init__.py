"""Rotary positions, and every method to read inputs longer than those of the training.

Rotary(dim=64, train_length=2048)         how a model was trained
ReRoPE(1024) | LogN()                     what to change when it reads more
lmlab.attention.attend, lmlab.hf.extend   where it is put to use
"""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.rope.band import DCA as DCA
    from lmlab.rope.band import InvLeakyReRoPE as InvLeakyReRoPE
    from lmlab.rope.band import LeakyReRoPE as LeakyReRoPE
    from lmlab.rope.band import ReRoPE as ReRoPE
    from lmlab.rope.band import SelfExtend as SelfExtend
    from lmlab.rope.band import Window as Window
    from lmlab.rope.compose import Extension as Extension
    from lmlab.rope.compose import as_extension as as_extension
    from lmlab.rope.compose import extension_from_table as extension_from_table
    from lmlab.rope.frequency import ABF as ABF
    from lmlab.rope.frequency import PI as PI
    from lmlab.rope.frequency import DynamicNTK as DynamicNTK
    from lmlab.rope.frequency import Llama3 as Llama3
    from lmlab.rope.frequency import LongRoPE as LongRoPE
    from lmlab.rope.frequency import NTKAware as NTKAware
    from lmlab.rope.frequency import NTKFixed as NTKFixed
    from lmlab.rope.frequency import NTKMixed as NTKMixed
    from lmlab.rope.frequency import Proportional as Proportional
    from lmlab.rope.frequency import YaRN as YaRN
    from lmlab.rope.hybrids import LayerPosition as LayerPosition
    from lmlab.rope.hybrids import hybrid as hybrid
    from lmlab.rope.limits import LengthWarning as LengthWarning
    from lmlab.rope.limits import warn_length as warn_length
    from lmlab.rope.logit import ALiBi as ALiBi
    from lmlab.rope.logit import CosA as CosA
    from lmlab.rope.logit import KeyNorm as KeyNorm
    from lmlab.rope.logit import LogN as LogN
    from lmlab.rope.logit import Temperature as Temperature
    from lmlab.rope.method import Method as Method
    from lmlab.rope.reference import distances as distances
    from lmlab.rope.rotary import Rotary as Rotary
    from lmlab.rope.rotary import frequencies as frequencies
    from lmlab.rope.rotary import rotate as rotate

_NAMES = {
    "band": ["DCA", "InvLeakyReRoPE", "LeakyReRoPE", "ReRoPE", "SelfExtend", "Window"],
    "compose": ["Extension", "as_extension", "extension_from_table"],
    "frequency": [
        *("ABF", "PI", "DynamicNTK", "Llama3", "LongRoPE", "NTKAware", "NTKFixed", "NTKMixed"),
        *("Proportional", "YaRN"),
    ],
    "hybrids": ["LayerPosition", "hybrid"],
    "limits": ["LengthWarning", "warn_length"],
    "logit": ["ALiBi", "CosA", "KeyNorm", "LogN", "Temperature"],
    "method": ["Method"],
    "reference": ["distances"],
    "rotary": ["Rotary", "frequencies", "rotate"],
}
__all__ = [
    "ABF",
    "DCA",
    "PI",
    "ALiBi",
    "CosA",
    "DynamicNTK",
    "Extension",
    "InvLeakyReRoPE",
    "KeyNorm",
    "LayerPosition",
    "LeakyReRoPE",
    "LengthWarning",
    "Llama3",
    "LogN",
    "LongRoPE",
    "Method",
    "NTKAware",
    "NTKFixed",
    "NTKMixed",
    "Proportional",
    "ReRoPE",
    "Rotary",
    "SelfExtend",
    "Temperature",
    "Window",
    "YaRN",
    "as_extension",
    "distances",
    "extension_from_table",
    "frequencies",
    "hybrid",
    "rotate",
    "warn_length",
]

__getattr__, __dir__ = door(__name__, _NAMES)
