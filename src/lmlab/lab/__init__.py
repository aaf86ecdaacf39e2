"""The laboratory: a recipe in, a run directory with its report out, and the `lmlab` command."""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.lab.overrides import RecipeError as RecipeError
    from lmlab.lab.pipeline import Run as Run
    from lmlab.lab.pipeline import run as run
    from lmlab.lab.recipe import Recipe as Recipe
    from lmlab.lab.recipe import Variant as Variant
    from lmlab.lab.recipe import load_recipe as load_recipe
    from lmlab.lab.sources import CorpusError as CorpusError

__all__ = ["CorpusError", "Recipe", "RecipeError", "Run", "Variant", "load_recipe", "run"]

__getattr__, __dir__ = door(
    __name__,
    {
        "sources": ["CorpusError"],
        "overrides": ["RecipeError"],
        "pipeline": ["Run", "run"],
        "recipe": ["Recipe", "Variant", "load_recipe"],
    },
)
