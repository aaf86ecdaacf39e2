"""Self-consuming loops: models that are trained on what models made, again and again.

`run` trains any model that can fit and sample; `laws` draws the same loops exactly where a closed form
exists; `theory` has the numbers that both must hit; `metrics` measures quality and diversity.
Importing this room loads neither torch nor scikit-learn nor ray.
"""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.autophagy import laws as laws
    from lmlab.autophagy import metrics as metrics
    from lmlab.autophagy import theory as theory
    from lmlab.autophagy.filters import BestOf as BestOf
    from lmlab.autophagy.filters import Correct as Correct
    from lmlab.autophagy.filters import Filter as Filter
    from lmlab.autophagy.filters import FilterExhausted as FilterExhausted
    from lmlab.autophagy.filters import Verify as Verify
    from lmlab.autophagy.generators.decoder import DecoderLM as DecoderLM
    from lmlab.autophagy.generators.diffusion import Diffusion as Diffusion
    from lmlab.autophagy.generators.gaussian import Gaussian as Gaussian
    from lmlab.autophagy.generators.guided import SelfGuided as SelfGuided
    from lmlab.autophagy.generators.kde import KDE as KDE
    from lmlab.autophagy.generators.mixture import GaussianMixture as GaussianMixture
    from lmlab.autophagy.generators.ngram import NGram as NGram
    from lmlab.autophagy.generators.protocol import Generator as Generator
    from lmlab.autophagy.history import History as History
    from lmlab.autophagy.loops import Accumulate as Accumulate
    from lmlab.autophagy.loops import Augmentation as Augmentation
    from lmlab.autophagy.loops import Contamination as Contamination
    from lmlab.autophagy.loops import Fresh as Fresh
    from lmlab.autophagy.loops import Loop as Loop
    from lmlab.autophagy.loops import Memory as Memory
    from lmlab.autophagy.loops import Part as Part
    from lmlab.autophagy.loops import Plan as Plan
    from lmlab.autophagy.loops import RealOnly as RealOnly
    from lmlab.autophagy.loops import Subsample as Subsample
    from lmlab.autophagy.loops import Synthetic as Synthetic
    from lmlab.autophagy.loops import Weighted as Weighted
    from lmlab.autophagy.metrics.named import Sample as Sample
    from lmlab.autophagy.options import AutophagyOptions as AutophagyOptions
    from lmlab.autophagy.random import rng_for as rng_for
    from lmlab.autophagy.runner import DataExhausted as DataExhausted
    from lmlab.autophagy.runner import run as run
    from lmlab.autophagy.runner import sweep as sweep
    from lmlab.autophagy.store import RunMismatch as RunMismatch

_NAMES = {
    "filters": ["BestOf", "Correct", "Filter", "FilterExhausted", "Verify"],
    "generators.decoder": ["DecoderLM"],
    "generators.diffusion": ["Diffusion"],
    "generators.gaussian": ["Gaussian"],
    "generators.guided": ["SelfGuided"],
    "generators.kde": ["KDE"],
    "generators.mixture": ["GaussianMixture"],
    "generators.ngram": ["NGram"],
    "generators.protocol": ["Generator"],
    "history": ["History"],
    "loops": [
        "Accumulate", "Augmentation", "Contamination", "Fresh", "Loop", "Memory", "Part", "Plan", "RealOnly",
        "Subsample", "Synthetic", "Weighted",
    ],
    "metrics.named": ["Sample"],
    "options": ["AutophagyOptions"],
    "random": ["rng_for"],
    "runner": ["DataExhausted", "run", "sweep"],
    "store": ["RunMismatch"],
}  # fmt: skip
__all__ = [name for names in _NAMES.values() for name in names]
__getattr__, __dir__ = door(__name__, _NAMES)
