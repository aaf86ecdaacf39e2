"""The recipe's `[autophagy]` table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

GeneratorName = Literal["gaussian", "mixture", "kde", "ngram", "decoder", "diffusion"]
LoopName = Literal["synthetic", "augmentation", "fresh", "accumulate", "subsample", "contamination"]


@dataclass(frozen=True)
class AutophagyOptions:
    """Which loops are run with which model, how long and how often, and what is measured.

    generator: ngram and decoder are trained on the recipe's text, in rows of row_length tokens; gaussian,
    mixture and kde on points of known laws, diffusion on the 8x8 digits. control: RealOnly of every loop
    beside it. bias: λ of sampling, one arm each. n_initial 0: as the loop says. weight 0: rows unweighted.
    synthetic: the share of synthetic rows in the loop contamination. best_of: curation by the model's own
    length-normalised likelihood is not assumed; k > 1 keeps of k rows the one with most different tokens.
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
        if self.generator not in get_args(GeneratorName):
            raise ValueError(
                f"autophagy.generator: unknown {self.generator!r}; known are {', '.join(get_args(GeneratorName))}"
            )
        for loop in self.loops:
            if loop not in get_args(LoopName):
                raise ValueError(
                    f"autophagy.loops: unknown loop {loop!r}; known are {', '.join(get_args(LoopName))}"
                )
        if not self.loops or not self.bias:
            raise ValueError("autophagy.loops and autophagy.bias must name at least one each")
        for name in ("generations", "seeds", "n_real", "n_synth", "memory", "row_length", "best_of"):
            if getattr(self, name) < 1:
                raise ValueError(f"autophagy.{name} must be >= 1, got {getattr(self, name)!r}")
        if self.n_initial < 0:
            raise ValueError(
                f"autophagy.n_initial must be >= 0 (0: as the loop says), got {self.n_initial!r}"
            )
        for bias in self.bias:
            if not 0.0 <= bias <= 1.0:
                raise ValueError(f"autophagy.bias must be numbers in [0, 1], got {bias!r}")
        if not 0.0 <= self.weight < 1.0:
            raise ValueError(f"autophagy.weight must be in (0, 1), or 0 for none, got {self.weight!r}")
        if not 0.0 <= self.synthetic <= 1.0:
            raise ValueError(f"autophagy.synthetic must be in [0, 1], got {self.synthetic!r}")
