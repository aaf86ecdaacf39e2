"""Writes tests/public_names.txt and docs/api.md anew: run it after a decision to add or drop a public name."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

ROOMS = "retry tokenize rope attention recurrent losses model train evaluate autophagy hf lab".split()
HOME = Path(__file__).parent.parent
WIDEST = 90  # of a signature that is shown whole


def main() -> None:
    names = [f"lmlab.{room}.{name}" for room in ROOMS for name in import_module(f"lmlab.{room}").__all__]
    (HOME / "tests" / "public_names.txt").write_text("\n".join(sorted(names)) + "\n", encoding="utf-8")
    (HOME / "docs" / "api.md").write_text(api_page(), encoding="utf-8")


def api_page() -> str:
    """Every public name of every room, with its arguments and the first sentence of its docstring."""
    lines = [
        "# API",
        "",
        "Every public name. `help(lmlab.model.Decoder)` tells more: shapes, units, errors, sources. The page is",
        "written by `scripts/public_names.py`.",
    ]
    for room in ROOMS:
        module = import_module(f"lmlab.{room}")
        lines += ["", f"## `lmlab.{room}`", "", first_sentence(module), ""]
        for name in sorted(module.__all__, key=str.casefold):
            value = getattr(module, name)
            about = first_sentence(value)
            lines.append(f"- `{name}{arguments(value)}`" + (f": {about}" if about else ""))
    return "\n".join(lines) + "\n"


def first_sentence(value: Any) -> str:
    if not (inspect.ismodule(value) or callable(value)):
        return ""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return text if len(text) < 300 else text[: text.find(". ") + 1] or text[:300]


def arguments(value: Any) -> str:
    """The names of the arguments with their defaults; "(…)" where that is too long, nothing for no callable."""
    if not callable(value):
        return ""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(…)"
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    shown = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return shown if len(shown) <= WIDEST and " object at 0x" not in shown else "(…)"


if __name__ == "__main__":
    main()
