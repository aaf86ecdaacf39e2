"""Frozen dataclasses to and from plain JSON values, with errors that name the key.

Every configuration of the laboratory is such a dataclass; this is the one place where its annotations
are read. No torch is imported here.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lmlab.model.errors import ConfigError

T = TypeVar("T")


class _Refused(Exception):
    pass


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if hint is None or hint is type(None):
        return "nothing"
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(part) for part in get_args(hint) if part is not type(None))
    if origin is tuple:
        parts = [part for part in get_args(hint) if part is not Ellipsis]
        if Ellipsis in get_args(hint):
            return f"a list, each {_describe(parts[0])}"
        return f"{len(parts)} values, each {_describe(parts[0])}"
    names = {
        int: "an integer",
        float: "a finite number",
        str: "a string",
        bool: "true or false",
        dict: "a table",
    }
    return names.get(origin or hint, "a table")


def _convert(value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it, or `_Refused`."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for part in get_args(hint):
            try:
                return _convert(value, part)
            except _Refused:
                continue
        raise _Refused
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in get_args(hint)):
            raise _Refused
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _Refused
        parts = get_args(hint)
        if Ellipsis in parts:
            parts = (parts[0],) * len(value)
        if len(parts) != len(value):
            raise _Refused
        return tuple(_convert(item, part) for item, part in zip(value, parts, strict=True))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
        if not math.isfinite(number):
            raise _Refused
        return number
    if hint is int and isinstance(value, bool):
        raise _Refused
    if not isinstance(value, type(None) if hint is None else origin or hint):
        raise _Refused
    return value


def check_fields(instance: Any) -> None:
    """For `__post_init__`: every field has the type that its annotation says, lists become tuples.

    Raises ConfigError naming the first field that hasn't.
    """
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = _field(field.name, getattr(instance, field.name), hints[field.name])
        object.__setattr__(instance, field.name, value)


def require(condition: bool, key: str, accepted: str, value: Any) -> None:
    """ConfigError "'key' must be `accepted`, got `value`" unless `condition` holds."""
    if not condition:
        raise ConfigError(key, f"must be {accepted}, got {value!r}")


def from_plain(cls: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass `cls` from plain values; tables become the dataclasses that the fields name.

    An unknown key at any depth, a wrong type or a value out of range is a ConfigError with the dotted key.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{cls.__name__} is read from a table (dict), got {values!r}")
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise ConfigError.unknown(str(key), names)
        inner = _dataclass_of(hints[key])
        if inner is not None and isinstance(value, Mapping):
            try:
                value = from_plain(inner, value)
            except ConfigError as error:
                raise error.under(key) from None
        arguments[key] = _field(key, value, hints[key])
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and needed and field.name not in arguments:
            raise ConfigError(field.name, "must be given")
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except ValueError as error:  # a room's own dataclass, which knows no ConfigError
        words = re.split(r"[\s:.=]+", str(error))  # "vq: codes must be…", "autophagy.bias must be…"
        key = next((name for name in names if name in words), names[0])
        raise ConfigError(key, f"isn't accepted: {error}") from None


def _field(key: str, value: Any, hint: Any) -> Any:
    try:
        return _convert(value, hint)
    except _Refused:
        raise ConfigError(key, f"must be {_describe(hint)}, got {value!r}") from None


def _dataclass_of(hint: Any) -> type | None:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next(
        (option for option in options if dataclasses.is_dataclass(option) and isinstance(option, type)), None
    )


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, all the way down; numbers, strings and None stay."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value
