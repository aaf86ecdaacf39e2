"""Settings that are legal and known to leave the trained range: said once, where a model is set up."""

from __future__ import annotations

import math
import warnings
from typing import Any

from lmlab.rope.band import DCA, LeakyReRoPE, ReRoPE, SelfExtend
from lmlab.rope.compose import as_extension
from lmlab.rope.frequency import YaRN


class LengthWarning(UserWarning):
    """A length-extension setting that leaves the range of distances the model was trained on."""


def warn_length(extension: Any, train_length: int, length: int | None = None, *, stacklevel: int = 2) -> None:
    """One LengthWarning for all that is doubtful in `extension` for a model trained on `train_length` tokens.

    `length` is the longest input that is planned, where it is known."""
    found = []
    for method in as_extension(extension).methods:
        if isinstance(method, ReRoPE | LeakyReRoPE | SelfExtend) and method.window > 0.75 * train_length:
            found.append(
                f"{method}: a window above 3/4 of the train length {train_length} is known to collapse; "
                f"{max(1, train_length // 4)} to {max(1, train_length // 2)} works"
            )
        if isinstance(method, LeakyReRoPE) and length is not None and length > method.window:
            reach = method.window + (length - 1 - method.window) / method.k
            if reach > train_length:
                found.append(
                    f"{method}: the farthest distance at length {length} is {reach:.0f}, beyond the "
                    f"train length {train_length}; a larger k presses it back"
                )
        if isinstance(method, DCA) and method.chunk > train_length:
            found.append(f"{method}: chunk is above the train length {train_length}")
        if (
            isinstance(method, YaRN)
            and method.fast is not None
            and method.fast > train_length / (2 * math.pi)
        ):
            found.append(
                f"{method}: no pair turns {method.fast:g} times in {train_length} tokens, so every pair is "
                "interpolated; fast=None is scale-free"
            )
    if found:
        warnings.warn("; ".join(found), LengthWarning, stacklevel=stacklevel + 1)
