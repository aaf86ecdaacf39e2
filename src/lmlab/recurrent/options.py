"""What a recipe may say of the recurrent mixer; free of torch, so that a recipe can be read without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecurrentOptions:
    """The table `[model.recurrent]` of a recipe.

    cell: "gru", "lstm", "rnn", "diagonal-gru", "diagonal-lstm", "diagonal-rnn", "mingru" or "lru".
    state: width of the state; None is the width of the model.
    method, window: as in `lmlab.recurrent.solve`.
    """

    cell: str = "gru"
    state: int | None = None
    method: str = "auto"
    window: int | None = None
