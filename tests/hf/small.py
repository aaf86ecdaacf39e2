"""Small models and a tokenizer for the tests of conversions."""

from typing import Any

from lmlab.model import Decoder, DecoderConfig
from lmlab.tokenize import Tokenizer

TEXTS = ["the light of the moon on the river", "the river runs by night and day", "明月光 地上霜"] * 5


def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=300, special_tokens=["<eos>"])


def decoder(seed: int = 3, **options: Any) -> Decoder:
    shape = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "max_length": 32}
    return Decoder(DecoderConfig.from_dict({**shape, **options}), seed=seed).eval()
