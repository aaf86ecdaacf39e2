"""A run directory as the report sees it: files only, finished or not."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.lab.report.text import finite, whole

STAGES = ("corpus", "tokenize", "train", "evaluate", "generate")


@dataclass(frozen=True)
class Stage:
    """One finished stage as a variant and a seed of the recipe use it."""

    stage: str
    variant: str
    seed: int | None
    directory: Path
    result: Mapping[str, Any]
    settings: Mapping[str, Any]
    seconds: float | None
    reused: bool
    shared: bool = False  # listed once, for all variants


@dataclass(frozen=True)
class RunFiles:
    """What a run has left on disk so far."""

    path: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    versions: Mapping[str, Any]
    stages: tuple[Stage, ...]
    log: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or self.path.name)

    def of(self, stage: str, variant: str | None = None) -> list[Stage]:
        """The stages of one kind, of one variant if it is given, in the recipe's order."""
        return [s for s in self.stages if s.stage == stage and variant in (None, s.variant)]

    def variants(self, *stages: str) -> list[str]:
        """Variants that have one of these stages, in the recipe's order."""
        return list(dict.fromkeys(s.variant for s in self.stages if s.stage in stages))


def read_run(path: Path) -> RunFiles:
    """Read `path`. Raises FileNotFoundError where there is no run; what is missing in one is left empty."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no run directory; `lmlab run --out {path}` makes one")
    if not any((path / name).exists() for name in ("recipe.toml", "stages.json", "stages")):
        raise FileNotFoundError(
            f"{path} holds no run (no recipe.toml, no stages); give what `lmlab run` wrote"
        )
    recipe_text = _text(path / "recipe.toml")
    return RunFiles(
        path=path,
        recipe=_recipe(recipe_text),
        recipe_text=recipe_text,
        versions=mapping(_json(path / "versions.json")),
        stages=tuple(_stages(path)),
        log=tuple(_lines(path / "log.jsonl")),
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The JSON objects of a JSON array; empty for anything else."""
    return [mapping(v) for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def array(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def get(value: Any, *keys: str) -> Any:
    """value[key][key]…, None where the way ends."""
    for key in keys:
        value = mapping(value).get(key)
    return value


def mean(values: Sequence[Any]) -> float | None:
    """The mean of the finite ones, None without any."""
    known = [v for v in map(finite, values) if v is not None]
    return sum(known) / len(known) if known else None


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """The JSON objects of a file of lines; a line that was cut by a kill is left out."""
    return list(_lines(path))


def read_object(path: Path) -> Mapping[str, Any]:
    """The JSON object of a file, an empty one if there is none."""
    return mapping(_json(path))


def _stages(path: Path) -> Iterator[Stage]:
    listed = objects(_json(path / "stages.json"))
    if not listed:  # killed before the first list was written
        listed = [{"directory": f"stages/{d.parent.name}"} for d in sorted(path.glob("stages/*/stage.json"))]
    for entry in listed:
        directory = _directory(path, entry.get("directory"))
        told = mapping(_json(directory / "stage.json")) if directory else {}
        if directory is None or not told:
            continue
        # Variants that agree share a directory: the list says whose turn this is, stage.json who made it.
        seed = entry.get("seed", told.get("seed"))
        yield Stage(
            stage=str(entry.get("stage") or told.get("stage")),
            variant=str(entry.get("variant") or told.get("variant") or "base"),
            seed=whole(seed),
            directory=directory,
            result=mapping(told.get("result")),
            settings=mapping(told.get("settings")),
            seconds=finite(told.get("seconds")),
            reused=bool(entry.get("reused")),
            shared="variant" in entry and entry["variant"] is None,
        )


def _directory(path: Path, name: Any) -> Path | None:
    if not isinstance(name, str):
        return None
    for candidate in (path / name, path / "stages" / name):
        if (candidate / "stage.json").is_file() and candidate.resolve().is_relative_to(path.resolve()):
            return candidate
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError:
        return None


def _recipe(text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    for line in _text(path).split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, Mapping):
            yield value
