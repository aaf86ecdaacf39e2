"""The recipe's `[autophagy]` table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmlab.model.fields import check_fields, require

GeneratorName = Literal["gaussian", "mixture", "kde", "ngram", "decoder", "diffusion"]
LoopName = Literal["synthetic", "augmentation", "fresh", "accumulate", "subsample", "contamination"]


@dataclass(frozen=True)
class AutophagyOptions:
    """Which loops are run with which model, how long and how often, and what is measured.

    generator: ngram and decoder are trained on the recipe's text, in rows of row_length tokens; gaussian,
    mixture and kde on points of known laws, diffusion on the 8x8 digits. control: RealOnly of every loop
    beside it. bias: λ of sampling, one arm each. n_initial 0: as the loop says. weight 0: rows unweighted.
    synthetic: the share of synthetic rows in the loop contamination. best_of k > 1: curation, of k rows the
    one with most different tokens is kept. Raises ConfigError that names the key.
    """

    generator: GeneratorName = "decoder"
    loops: tuple[LoopName, ...] = ("synthetic", "augmentation", "fresh", "accumulate")
    control: bool = True
    generations: int = 5
    seeds: int = 3
    bias: tuple[float, ...] = (1.0, 0.8)
    n_real: int = 2000
    n_synth: int = 2000
    n_initial: int = 0
    memory: int = 1
    weight: float = 0.0
    synthetic: float = 0.9
    row_length: int = 64
    best_of: int = 1
    metrics: tuple[str, ...] = (
        "bits_per_byte", "distinct_4", "entropy_3", "self_bleu", "tail_coverage", "mauve",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("generations", "seeds", "n_real", "n_synth", "memory", "row_length", "best_of"):
            require(getattr(self, name) >= 1, name, "an integer >= 1", getattr(self, name))
        require(self.n_initial >= 0, "n_initial", "an integer >= 0 (0: as the loop says)", self.n_initial)
        require(len(self.loops) > 0, "loops", "a list of at least one loop", list(self.loops))
        in_range = len(self.bias) > 0 and all(0 <= bias <= 1 for bias in self.bias)
        require(in_range, "bias", "a list of numbers in [0, 1]", list(self.bias))
        require(0 <= self.weight < 1, "weight", "a number in [0, 1) (0: off)", self.weight)
        require(0 <= self.synthetic <= 1, "synthetic", "a number in [0, 1]", self.synthetic)
