"""Extension: length-extension methods put together, and their form in a recipe.

ReRoPE(1024) | LogN()
as_extension([ReRoPE(1024), LogN()])
extension_from_table([{"method": "rerope", "window": 1024}, {"method": "logn"}])
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, TypeVar

from lmlab.rope.band import DCA, InvLeakyReRoPE, LeakyReRoPE, ReRoPE, SelfExtend, Window
from lmlab.rope.frequency import (
    ABF,
    PI,
    DynamicNTK,
    Llama3,
    LongRoPE,
    NTKAware,
    NTKFixed,
    NTKMixed,
    Proportional,
    YaRN,
)
from lmlab.rope.logit import ALiBi, CosA, KeyNorm, LogN, Temperature
from lmlab.rope.method import Method, set_fields

_ORDER = ("frequency", "band", "norm", "logit", "bias")
_METHODS: dict[str, type[Method]] = {
    cls.__name__.lower(): cls
    for cls in (
        *(PI, NTKAware, NTKFixed, NTKMixed, DynamicNTK, ABF, YaRN, LongRoPE, Llama3, Proportional),
        *(Window, ReRoPE, LeakyReRoPE, InvLeakyReRoPE, SelfExtend, DCA),
        *(LogN, Temperature, KeyNorm, CosA, ALiBi),
    )
}
_M = TypeVar("_M", bound=Method)


@dataclass(frozen=True, repr=False)
class Extension:
    """Methods in use together: at most one frequency, band, norm and bias method, and any logit factors.

    The order in which they are given does not matter: `methods` is sorted, so equal compositions are equal.
    """

    methods: tuple[Method, ...] = ()

    def __post_init__(self) -> None:
        ordered = sorted(self.methods, key=lambda m: (_ORDER.index(m.kind), type(m).__name__))
        for first, second in itertools.pairwise(ordered):
            if first.kind == second.kind and (first.kind != "logit" or type(first) is type(second)):
                raise ValueError(
                    f"two {first.kind} methods, {first} and {second}: an extension takes one of a kind, "
                    "for example ReRoPE(window=1024) | LogN()"
                )
        object.__setattr__(self, "methods", tuple(ordered))

    def __or__(self, other: Any) -> Extension:
        return as_extension((self, other))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.methods)) or "Extension()"

    def find(self, cls: type[_M]) -> _M | None:
        """The method of this class (or of a class below it), or None."""
        return next((m for m in self.methods if isinstance(m, cls)), None)

    def without_rotary(self, train_length: int) -> Extension:
        """What a layer without rotary positions takes of it: norms and logit factors, with T₀ filled in."""
        kept: list[Method] = []
        for method in self.methods:
            if isinstance(method, LogN) and method.train_length is None:
                kept.append(replace(method, train_length=train_length))
            elif isinstance(method, CosA) and method.n is None:
                kept.append(replace(method, n=train_length / 2))
            elif method.kind in ("norm", "logit"):
                kept.append(method)
        return Extension(tuple(kept))

    def to_tables(self) -> list[dict[str, Any]]:
        """One TOML-able table a method; `extension_from_table` reads them back."""
        return [
            {"method": type(m).__name__.lower()}
            | {name: list(v) if isinstance(v, tuple) else v for name, v in set_fields(m).items()}
            for m in self.methods
        ]


def as_extension(x: Any) -> Extension:
    """An Extension of a method, an Extension, None, or a tuple or list of these.

    Raises TypeError for anything else, ValueError where two methods of one kind meet."""
    return x if isinstance(x, Extension) else Extension(tuple(_flat(x)))


def _flat(x: Any) -> list[Method]:
    if x is None:
        return []
    if isinstance(x, Method):
        return [x]
    if isinstance(x, Extension):
        return list(x.methods)
    if isinstance(x, tuple | list):
        return [method for item in x for method in _flat(item)]
    hint = f"; did you mean {x.__name__}(...)?" if isinstance(x, type) and issubclass(x, Method) else ""
    raise TypeError(
        "extension must be a method such as ReRoPE(window=1024), an Extension, a tuple or list of methods, "
        f"or None, got {x!r}{hint}"
    )


def extension_from_table(table: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> Extension:
    """The Extension that a recipe's table names: {"method": "rerope", "window": 1024}, or a list of such.

    The method is its class's name in lower case, the other keys are its fields. Raises ValueError for an
    unknown method or field (naming the nearest) and for a value that the method refuses."""
    if table is None:
        return Extension()
    tables = [table] if isinstance(table, Mapping) else list(table)
    return Extension(tuple(_method(entry) for entry in tables))


def _method(table: Mapping[str, Any]) -> Method:
    example = '{method = "rerope", window = 1024}'
    if not isinstance(table, Mapping) or not isinstance(table.get("method"), str):
        raise ValueError(f"an extension is a table such as {example}, got {table!r}")
    name = table["method"]
    if name not in _METHODS:
        raise ValueError(
            f"unknown method {name!r}{_nearest(name.lower(), _METHODS)}; methods: {', '.join(_METHODS)}"
        )
    cls = _METHODS[name]
    known = {field.name: field for field in fields(cls)}
    given = {key: value for key, value in table.items() if key != "method"}
    for key in given:
        if key not in known:
            accepted = ", ".join(known) or "none"
            raise ValueError(
                f"method {name!r} has no field {key!r}{_nearest(key, known)}; fields: {accepted}"
            )
    missing = [key for key, field in known.items() if field.default is MISSING and key not in given]
    if missing:
        raise ValueError(f"method {name!r} needs {', '.join(missing)}; a table is written as {example}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
