"""`--set a.b=1` changes a table, and a mistake in a recipe is named by its key and its file.

Nothing here knows which keys a recipe has; `lmlab.model.fields` turns tables into dataclasses.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmlab.model.errors import ConfigError


class RecipeError(ConfigError):
    """A mistake in a recipe. `key`: dotted, or ""; `file`: where it stands; `nearest`: the right key, if near."""

    def __init__(
        self,
        key: str,
        problem: str,
        *,
        nearest: str | None = None,
        known: Iterable[str] = (),
        file: str | None = None,
    ) -> None:
        self.file = file
        super().__init__(key, problem, nearest=nearest, known=known)

    @classmethod
    def of(cls, error: ConfigError, file: str | None, every_key: Iterable[str] = ()) -> RecipeError:
        """`error` as one of `file`; an unknown key without a near one in its table is looked for everywhere."""
        near = error.nearest
        if error.problem == "unknown key":
            near = _same_name(error.key, every_key) or near or similar(error.key, every_key)
        return cls(error.key, error.problem, nearest=near, known=error.known, file=file)

    def _text(self) -> str:
        text = super()._text() if self.key else self.problem
        return f"{self.file}: {text}" if self.file else text


def _same_name(key: str, keys: Iterable[str]) -> str | None:
    """The first key elsewhere with this last name: `steps` is most likely `train.steps`."""
    last = key.rpartition(".")[2]
    return next((k for k in keys if k.rpartition(".")[2] == last), None)


def similar(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that is most like `word`, if one is near."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return found[0] if found else None


# --- tables ------------------------------------------------------------------------------------------------


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; a syntax error tells file, line and column."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError("", f"not UTF-8 at byte {error.start}", file=path.name) from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError("", _toml_text(error), file=path.name) from error
    except OSError as error:
        raise RecipeError("", f"can't be read: {error.strerror}", file=str(path)) from error


def _toml_text(error: tomllib.TOMLDecodeError) -> str:
    at = re.search(r"^(.*) \(at (?:line (\d+), column (\d+)|end of document)\)$", str(error), re.DOTALL)
    if at is None:
        return str(error)
    return f"line {at[2]}, column {at[3]}: {at[1]}" if at[2] else f"end of the file: {at[1]}"


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """`["train.steps=3", "corpus.path=my.txt"]` as dotted keys and TOML values; a bare word is a string."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals or not key:
            raise RecipeError("", f"--set takes key=value, got {word!r}")
        if key in found:
            raise RecipeError(key, "is given twice", file="--set")
        found[key] = _parse_value(key, text.strip())
    return found


def _parse_value(key: str, text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ("[", "{", '"', "'") or not text.isprintable():
            raise RecipeError(key, f"isn't a TOML value: {text} ({error})", file="--set") from error
        return text
    if set(table) != {"value"}:
        raise RecipeError(key, f"must be one value, got {text!r}", file="--set")
    return table["value"]


def apply(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `table` with dotted keys set; tables on the way are made where they are missing."""
    result: dict[str, Any] = _copy(table)
    for key, value in overrides.items():
        *path, last = key.split(".")
        if not last or not all(path):
            raise RecipeError(key, "isn't a dotted key")
        inner: Any = result
        for depth, name in enumerate(path):
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                above = ".".join(path[: depth + 1])
                raise RecipeError(key, f"can't be set: '{above}' isn't a table")
        inner[last] = _copy(value)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list | tuple) else value


def to_toml(table: Mapping[str, Any]) -> str:
    """`table` as TOML text that reads back equal: plain values first, then one header a table."""
    return "\n".join(_toml_lines(table, ())).strip() + "\n"


def _toml_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    tables = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    lists = {
        k: v for k, v in table.items() if isinstance(v, list) and v and all(isinstance(i, Mapping) for i in v)
    }
    lines = [
        f"{_key(k)} = {_plain_toml(v)}"
        for k, v in table.items()
        if k not in tables and (k not in lists or path) and v is not None
    ]
    for name, inner in tables.items():
        header = ".".join(_key(p) for p in (*path, name))
        body = _toml_lines(inner, (*path, name))
        lines += ["", f"[{header}]", *body]
    for name, items in lists.items() if not path else ():
        for item in items:
            lines += ["", f"[[{_key(name)}]]", *(f"{_key(k)} = {_plain_toml(v)}" for k, v in item.items())]
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _plain_toml(name)


def _plain_toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_plain_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_plain_toml(v) for v in value) + "]"
    return str(value) if isinstance(value, int | float) else repr(value)
