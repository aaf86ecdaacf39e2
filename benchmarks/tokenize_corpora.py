"""Texts to measure tokenizers on: what ships with lmlab, and what lies on any machine that runs it.

Fetched corpora (`lmlab data fetch handbook-zh`, `brown`) are taken too where they are.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from lmlab.lab.fetch import data_folder
from lmlab.lab.sources import embedded_sources

BLOCK = 40  # lines


@cache
def shipped(name: str) -> str:
    """The Tang poems ("tang") or the King James Bible ("kjv"), about 1 MB."""
    (source,) = embedded_sources(f"sample-{name}")
    with source.open() as file:
        return file.read().decode()


@cache
def files(kind: str) -> tuple[str, ...]:
    """Texts of one kind: "python" (the standard library), "c++" (torch's headers), "readme" (of packages)."""
    if kind == "readme":
        told = {d.name: d.metadata.get_payload() for d in metadata.distributions() if d.name}
        return tuple(str(told[name]) for name in sorted(told) if len(str(told[name])) > 200)
    if kind == "python":
        paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    else:
        import torch

        paths = sorted((Path(torch.__file__).parent / "include" / "ATen").glob("*.h"))
    return tuple(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def fetched(name: str) -> str | None:
    """A corpus that `lmlab data fetch` brought, or None."""
    path = data_folder() / name / f"{name}.jsonl"
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        return "\n".join(json.loads(line)["text"] for line in file)


def cut(text: str, size: int) -> str:
    """About `size` bytes from the beginning, whole lines."""
    part = text.encode()[:size].decode(errors="ignore")
    return part[: part.rfind("\n") + 1] or part


def code(size: int) -> str:
    return cut("\n".join(files("python")), size)


def lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]


def documents(text: str, size: int = 3000) -> list[str]:
    """The text in pieces of about `size` bytes, at the ends of lines."""
    found: list[str] = []
    part: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        part.append(line)
        length += len(line.encode())
        if length >= size:
            found.append("".join(part))
            part, length = [], 0
    return found + (["".join(part)] if part else [])


def split(text: str) -> tuple[list[str], list[str]]:
    """Lines to train on and lines held out: every tenth block of BLOCK lines."""
    kept: list[str] = []
    held: list[str] = []
    for i, block in enumerate(_blocks(lines(text))):
        (held if i % 10 == 9 else kept).extend(block)
    return kept, held


def _blocks(some: list[str]) -> Iterator[list[str]]:
    for i in range(0, len(some), BLOCK):
        yield some[i : i + BLOCK]


def mixed(size: int) -> str:
    """Chinese, English and code, a third of the bytes each."""
    return "".join(cut(text, size // 3) + "\n" for text in (shipped("tang"), shipped("kjv"), code(size)))


def other_domains(size: int) -> dict[str, list[str]]:
    """Lines of kinds that `mixed` holds nothing of."""
    found: dict[str, Iterable[str]] = {"C++ headers": files("c++"), "package readmes": files("readme")}
    for name in ("brown", "handbook-zh"):
        text = fetched(name)
        if text is not None:
            found[name] = [text]
    return {name: lines(cut("\n".join(texts), size)) for name, texts in found.items()}
