"""Quality and diversity of synthetic rows beside real ones, as functions: `metrics.frechet(x, y)`."""

from lmlab.autophagy.metrics.text import ngram_coverage, ngram_entropy
from lmlab.autophagy.metrics.vectors import frechet, frechet_gaussian, w2_squared

__all__ = ["frechet", "frechet_gaussian", "ngram_coverage", "ngram_entropy", "w2_squared"]
