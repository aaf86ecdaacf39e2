"""A byte-level unigram tokenizer: exact Viterbi, exact sampling of segmentations, no unknown token.

tok = Tokenizer.train("corpus/", vocab_size=8192)
ids = tok.encode(text)                        # the best segmentation
aug = tok.encode(text, alpha=0.5, seed=7)     # a draw from p^0.5 / Z
"""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.tokenize.decoder import Decoder as Decoder
    from lmlab.tokenize.encoded import Encoded as Encoded
    from lmlab.tokenize.encoded import Lattice as Lattice
    from lmlab.tokenize.tokenizer import Tokenizer as Tokenizer

__all__ = ["Decoder", "Encoded", "Lattice", "Tokenizer"]

__getattr__, __dir__ = door(
    __name__, {"tokenizer": ["Tokenizer"], "encoded": ["Encoded", "Lattice"], "decoder": ["Decoder"]}
)
