"""Doors that open on use: a room names what it offers and loads a file when a name of it is asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def door(
    room: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) for the package `room`.

    `names` maps a submodule to the public names that it defines; the submodule is imported when one of
    them is first used. So a room can be imported, and its dataclasses read, without loading torch.
    """
    home = {name: module for module, members in names.items() for name in members}

    def getattr_(name: str) -> Any:
        from importlib import import_module  # a door that stays shut costs nothing

        if name not in home:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(import_module(f"{room}.{home[name]}"), name)
        setattr(sys.modules[room], name, value)
        return value

    def dir_() -> list[str]:
        return sorted(home)

    return getattr_, dir_
