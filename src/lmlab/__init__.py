"""A language-model laboratory: each idea is a room, `lmlab.tokenize`, `lmlab.rope`, `lmlab.losses`, …"""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.model import Decoder as Decoder
    from lmlab.model import DecoderConfig as DecoderConfig
    from lmlab.model import generate as generate

__version__ = "0.1.0"
__all__ = ["Decoder", "DecoderConfig", "generate"]

__getattr__, __dir__ = door(__name__, {"model": ["Decoder", "DecoderConfig", "generate"]})
