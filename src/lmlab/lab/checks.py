"""What a recipe asks of the rooms, asked before any work begins: a mistake mustn't show after the training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lmlab.lab.recipe import Recipe
from lmlab.lab.steps import autophagy, compare, tokenize, train
from lmlab.model.errors import ConfigError


def check(recipe: Recipe, stages: Sequence[str]) -> None:
    """Raise ConfigError for names and files that the dataclasses of a recipe can't know about."""
    if "tokenize" in stages:
        tokenize.settings(recipe)
    if "train" in stages:
        train.settings(recipe)
        _model(recipe)
        _loss(recipe)
    if "compare" in stages and recipe.compare is not None:
        compare.check(recipe)
    if "autophagy" in stages:
        autophagy.check(recipe)


def _model(recipe: Recipe) -> None:
    """The decoder is put together without memory for its weights."""
    import torch

    from lmlab.model import Decoder

    try:
        with torch.device("meta"):
            Decoder(dataclasses.replace(recipe.model, vocab_size=recipe.tokenize.vocab_size))
    except ConfigError as error:
        raise error.under("model") from None


def _loss(recipe: Recipe) -> None:
    import torch

    from lmlab.train.objective import build_criterion

    loss = dataclasses.replace(recipe.loss, cost=type(recipe.loss.cost)(kind="zero_one"))
    build_criterion(loss, torch.zeros(2, 2))
