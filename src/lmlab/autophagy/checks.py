"""What the arguments of several public functions may be."""

from __future__ import annotations

import math
import operator
from typing import Any


def whole(name: str, given: Any, least: int) -> int:
    """`given` as an int that is at least `least`, or ValueError."""
    try:
        value = operator.index(given)
    except TypeError:
        value = least - 1
    if value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {given!r}")
    return value


def check_bias(bias: Any) -> float:
    """λ as a float in [0, 1], or ValueError."""
    try:
        value = float(bias)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"bias must be a number in [0, 1] (1: unbiased, 0: modes only), got {bias!r}")
    return value
