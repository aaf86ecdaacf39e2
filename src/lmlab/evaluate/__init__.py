"""How good is it? Bits per byte with its floors, loss against length, recall, diversity and copying.

`bits_per_byte` is the unit of quality that is comparable between tokenizers; `byte_baselines` gives what
general compressors need for the same bytes. The length tests take any callable that maps ids to logits.
"""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.evaluate.baselines import byte_baselines as byte_baselines
    from lmlab.evaluate.bits import BitsPerByte as BitsPerByte
    from lmlab.evaluate.bits import bits_per_byte as bits_per_byte
    from lmlab.evaluate.length import ContextLoss as ContextLoss
    from lmlab.evaluate.length import LengthRow as LengthRow
    from lmlab.evaluate.length import PositionLoss as PositionLoss
    from lmlab.evaluate.length import length_table as length_table
    from lmlab.evaluate.length import loss_by_context as loss_by_context
    from lmlab.evaluate.length import loss_by_position as loss_by_position
    from lmlab.evaluate.recall import Passkey as Passkey
    from lmlab.evaluate.recall import passage_documents as passage_documents
    from lmlab.evaluate.recall import passkey as passkey
    from lmlab.evaluate.recall import recall_documents as recall_documents
    from lmlab.evaluate.recall import repeated_copy as repeated_copy
    from lmlab.evaluate.samples import copied_fraction as copied_fraction
    from lmlab.evaluate.samples import copied_spans as copied_spans
    from lmlab.evaluate.samples import distinct_n as distinct_n
    from lmlab.evaluate.samples import ngram_divergence as ngram_divergence
    from lmlab.evaluate.samples import repetition as repetition
    from lmlab.evaluate.samples import sample_quality as sample_quality

__all__ = [
    "BitsPerByte",
    "ContextLoss",
    "LengthRow",
    "Passkey",
    "PositionLoss",
    "bits_per_byte",
    "byte_baselines",
    "copied_fraction",
    "copied_spans",
    "distinct_n",
    "length_table",
    "loss_by_context",
    "loss_by_position",
    "ngram_divergence",
    "passage_documents",
    "passkey",
    "recall_documents",
    "repeated_copy",
    "repetition",
    "sample_quality",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "baselines": ["byte_baselines"],
        "bits": ["BitsPerByte", "bits_per_byte"],
        "length": [
            "ContextLoss",
            "LengthRow",
            "PositionLoss",
            "length_table",
            "loss_by_context",
            "loss_by_position",
        ],
        "recall": ["Passkey", "passage_documents", "passkey", "recall_documents", "repeated_copy"],
        "samples": [
            "copied_fraction",
            "copied_spans",
            "distinct_n",
            "ngram_divergence",
            "repetition",
            "sample_quality",
        ],
    },
)
