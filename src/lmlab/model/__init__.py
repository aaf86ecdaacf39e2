"""A decoder whose parts can be exchanged: configuration, model, cache, sampling, checkpoint."""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.model.config import AttentionOptions as AttentionOptions
    from lmlab.model.config import DecoderConfig as DecoderConfig
    from lmlab.model.config import PositionOptions as PositionOptions
    from lmlab.model.decoder import Decoder as Decoder
    from lmlab.model.decoder import Hidden as Hidden
    from lmlab.model.errors import CheckpointError as CheckpointError
    from lmlab.model.errors import ConfigError as ConfigError
    from lmlab.model.generation import Generation as Generation
    from lmlab.model.generation import generate as generate
    from lmlab.model.mixers import Mixer as Mixer
    from lmlab.model.mixers import MixerFactory as MixerFactory
    from lmlab.model.sampling import next_token_probs as next_token_probs
    from lmlab.model.state import DecoderState as DecoderState

__all__ = [
    "AttentionOptions",
    "CheckpointError",
    "ConfigError",
    "Decoder",
    "DecoderConfig",
    "DecoderState",
    "Generation",
    "Hidden",
    "Mixer",
    "MixerFactory",
    "PositionOptions",
    "generate",
    "next_token_probs",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "config": ["AttentionOptions", "DecoderConfig", "PositionOptions"],
        "decoder": ["Decoder", "Hidden"],
        "errors": ["CheckpointError", "ConfigError"],
        "generation": ["Generation", "generate"],
        "mixers": ["Mixer", "MixerFactory"],
        "sampling": ["next_token_probs"],
        "state": ["DecoderState"],
    },
)
