"""What every length-extension method is: a frozen value with a kind, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from lmlab.rope.compose import Extension

Kind = Literal["frequency", "band", "norm", "logit", "bias"]


@dataclass(frozen=True, repr=False)
class Method:
    """Base of the methods. `kind` says what it changes: one frequency, band, norm and bias method may be
    combined, with any logit factors. `a | b` composes."""

    kind: ClassVar[Kind]

    def __or__(self, other: Any) -> Extension:
        from lmlab.rope.compose import as_extension  # the composition knows the methods, not the reverse

        return as_extension((self, other))

    def __repr__(self) -> str:
        """The call that makes this value, without the arguments that are defaults."""
        given = ", ".join(f"{name}={value!r}" for name, value in set_fields(self).items())
        return f"{type(self).__name__}({given})"


def set_fields(method: Method) -> dict[str, Any]:
    """The fields of `method` that differ from their defaults."""
    values = {field: getattr(method, field.name) for field in fields(method)}
    return {f.name: v for f, v in values.items() if f.default is MISSING or v != f.default}


def whole(owner: Method, name: str, least: int) -> None:
    """Raises ValueError unless the field is an integer ≥ least, and below 2⁵³: positions are computed in float64."""
    value = getattr(owner, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{type(owner).__name__}: {name} must be an integer >= {least}, got {value!r}")
    if value >= 2**53:
        raise ValueError(f"{type(owner).__name__}: {name} must be an integer below 2^53, got {value!r}")


def positive(owner: Method, name: str, *, optional: bool = False) -> None:
    """Makes the field a float; raises ValueError unless it is finite and > 0 (or None where optional)."""
    value = getattr(owner, name)
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        also = " or None" if optional else ""
        raise ValueError(f"{type(owner).__name__}: {name} must be a number > 0{also}, got {value!r}")
    object.__setattr__(owner, name, float(value))
