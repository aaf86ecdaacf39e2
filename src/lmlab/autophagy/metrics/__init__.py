"""Quality and diversity of synthetic rows beside real ones, as functions: `metrics.frechet(x, y)`."""

from lmlab.autophagy.metrics.frontier import frontier_area, mauve
from lmlab.autophagy.metrics.neighbours import density_coverage, precision_recall
from lmlab.autophagy.metrics.text import ngram_coverage, ngram_entropy, self_bleu
from lmlab.autophagy.metrics.vectors import frechet, frechet_gaussian, w2_squared

__all__ = [
    "density_coverage",
    "frechet",
    "frechet_gaussian",
    "frontier_area",
    "mauve",
    "ngram_coverage",
    "ngram_entropy",
    "precision_recall",
    "self_bleu",
    "w2_squared",
]
