"""The configuration of a decoder as transformers wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from lmlab.model import DecoderConfig
from lmlab.model.checkpoint import MODEL_TYPE


class LMLabConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is followed without its types
    """A DecoderConfig inside a transformers configuration.

    lmlab: a DecoderConfig, or its plain values. The names that other programs look for (vocab_size,
    hidden_size, num_hidden_layers, ...) follow from it; vocab_size alone can be given beside it, because
    resize_token_embeddings changes it. Raises ConfigError for an unknown key or a wrong value.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        lmlab: DecoderConfig | Mapping[str, Any] | None = None,
        vocab_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        if "d_model" in kwargs:
            raise ValueError(
                'this config.json was written by Decoder.save: lmlab.hf.convert(source, target, to="hf") first'
            )
        values = lmlab.to_dict() if isinstance(lmlab, DecoderConfig) else dict(lmlab or {})
        size = values.pop("vocab_size", 256) if vocab_size is None else vocab_size
        known = DecoderConfig.from_dict({**values, "vocab_size": size})
        self.lmlab = known.to_dict()
        del self.lmlab["vocab_size"]
        self.vocab_size = size
        self.hidden_size = known.d_model
        self.intermediate_size = known.ff_width
        self.num_hidden_layers = known.n_layers
        self.num_attention_heads = known.n_heads
        self.num_key_value_heads = known.kv_heads
        self.head_dim = known.head_width
        self.max_position_embeddings = known.max_length
        for name in _DERIVED:
            kwargs.pop(name, None)
        kwargs["tie_word_embeddings"] = known.tie_embeddings
        super().__init__(**kwargs)

    def to_decoder_config(self) -> DecoderConfig:
        """What `Decoder` is built from."""
        return DecoderConfig.from_dict({**self.lmlab, "vocab_size": self.vocab_size})


# Written to config.json for others to read; read back from `lmlab`.
_DERIVED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
