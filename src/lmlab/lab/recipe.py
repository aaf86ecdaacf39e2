"""A recipe: one frozen dataclass for each table of the TOML file. Nothing here imports torch.

`load_recipe("demo", {"train.steps": 10})` reads a shipped recipe or a file, sets keys, checks everything, and
raises RecipeError with the key, the file and the nearest right key before any work begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_type_hints

from lmlab.autophagy.options import AutophagyOptions
from lmlab.lab.options import (
    NAME,
    CompareOptions,
    CorpusOptions,
    EvaluateOptions,
    GenerateOptions,
    RetryOptions,
    TokenizeOptions,
    check_extension,
)
from lmlab.lab.overrides import RecipeError, apply, read_toml, similar, to_toml
from lmlab.model.config import DecoderConfig, PositionOptions
from lmlab.model.errors import ConfigError
from lmlab.model.fields import from_plain, to_plain
from lmlab.train.config import LossConfig, TrainConfig

T = TypeVar("T")
END = "<eos>"


@dataclass(frozen=True)
class Variant:
    """A recipe beside the first one: the keys that are other, and the recipe that they make."""

    name: str
    set: Mapping[str, Any]
    recipe: Recipe = field(repr=False)


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on. `table` holds the keys as they were given: a variant, a seed or
    `with_keys` changes these and checks the whole again."""

    name: str
    seed: int
    seeds: int
    corpus: CorpusOptions
    tokenize: TokenizeOptions
    model: DecoderConfig  # vocab_size is the one asked for; the tokenizer's own replaces it
    position: PositionOptions
    train: TrainConfig
    loss: LossConfig
    evaluate: EvaluateOptions
    generate: GenerateOptions
    retry: RetryOptions
    autophagy: AutophagyOptions | None
    compare: CompareOptions | None
    variants: tuple[Variant, ...] = ()
    folder: Path = field(default=Path(), compare=False)  # relative paths start here
    table: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def with_keys(self, keys: Mapping[str, Any]) -> Recipe:
        """The recipe with dotted keys set: `recipe.with_keys({"train.steps": 10})`."""
        return recipe_from(apply(self.table, keys), self.folder)

    def arms(self) -> list[tuple[str, int, Recipe]]:
        """All that runs side by side, as (variant, seed, recipe): the recipe itself is "base"."""
        variants = [("base", self), *((v.name, v.recipe) for v in self.variants)]
        return [
            (name, self.seed + k, recipe if k == 0 else recipe._with_seed(self.seed + k))
            for name, recipe in variants
            for k in range(self.seeds)
        ]

    def _with_seed(self, seed: int) -> Recipe:
        """Another seed for the model, its batches and samples; the split of the text and the tokenizer stay,
        so that all seeds are scored on the same bytes."""
        corpus = self.seed if self.corpus.seed is None else self.corpus.seed
        tokenize = self.seed if self.tokenize.seed is None else self.tokenize.seed
        return self.with_keys({"seed": seed, "corpus.seed": corpus, "tokenize.seed": tokenize})

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as the tables of a recipe file that gives this recipe again."""
        model = to_plain(self.model)
        del model["vocab_size"], model["position"]
        train = to_plain(self.train)
        del train["loss"]
        sections = {
            "corpus": to_plain(self.corpus) | {"path": self._whole_path(self.corpus.path)},
            "tokenize": to_plain(self.tokenize) | {"load": self._whole_path(self.tokenize.load)},
            "model": model,
            "position": to_plain(self.position),
            "train": train,
            "loss": to_plain(self.loss),
            "evaluate": to_plain(self.evaluate),
            "generate": to_plain(self.generate),
            "retry": to_plain(self.retry),
            "autophagy": to_plain(self.autophagy),
            "compare": to_plain(self.compare),
        }
        top = {"name": self.name, "seed": self.seed, "seeds": self.seeds}
        variants = [{"name": v.name, "set": dict(v.set)} for v in self.variants]
        found: dict[str, Any] = _without_none(top | sections)
        return found | ({"variants": variants} if variants else {})

    def _whole_path(self, path: str | None) -> str | None:
        """A path that means the same wherever the resolved recipe lies."""
        return None if path is None else str((self.folder / Path(path).expanduser()).absolute())

    def to_toml(self) -> str:
        return to_toml(self.resolved())


def _without_none(value: Any) -> Any:
    """None is the default wherever it is allowed but in the keys named here, where TOML needs the word."""
    if isinstance(value, Mapping):
        return {
            k: "none" if v is None and k in _NONE_WORD else _without_none(v)
            for k, v in value.items()
            if v is not None or k in _NONE_WORD
        }
    return value


_NONE_WORD = frozenset({"clip", "top_p"})  # optional keys whose default isn't None

_SECTIONS: dict[str, type] = {
    "corpus": CorpusOptions,
    "tokenize": TokenizeOptions,
    "model": DecoderConfig,
    "position": PositionOptions,
    "train": TrainConfig,
    "loss": LossConfig,
    "evaluate": EvaluateOptions,
    "generate": GenerateOptions,
    "retry": RetryOptions,
    "autophagy": AutophagyOptions,
    "compare": CompareOptions,
}
_TOP = ("name", "seed", "seeds", "variants")
_NOT_IN_TABLE = {"model": ("vocab_size", "position"), "train": ("loss",)}


def every_key() -> list[str]:
    """All dotted keys of a recipe."""
    keys = list(_TOP)
    for section, cls in _SECTIONS.items():
        keys += [section, *_keys(cls, section, _NOT_IN_TABLE.get(section, ()))]
    return keys


def _keys(cls: type, where: str, leave_out: Iterable[str] = ()) -> list[str]:
    hints = get_type_hints(cls)
    found: list[str] = []
    for f in fields(cls):
        if f.name in leave_out:
            continue
        found.append(f"{where}.{f.name}")
        for option in (hints[f.name], *get_args(hints[f.name])):
            if isinstance(option, type) and is_dataclass(option):
                found += _keys(option, f"{where}.{f.name}")
    return found


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = resources.files("lmlab.lab") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_recipe(path_or_name: str | Path, overrides: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """The recipe in a TOML file, or a shipped one by name, with dotted keys set. Raises RecipeError."""
    path = Path(path_or_name)
    shipped = recipe_names()
    if isinstance(path_or_name, str) and path_or_name in shipped:
        source = resources.files("lmlab.lab") / "recipes" / f"{path_or_name}.toml"
        with resources.as_file(source) as real:
            table = read_toml(real)
        file, folder = f"{path_or_name}.toml", Path.cwd()
    elif "\0" not in str(path) and path.is_file():
        table = read_toml(path)
        file, folder = path.name, path.resolve().parent
    else:
        near = similar(str(path_or_name), shipped)
        hint = f" Did you mean '{near}'?" if near else ""
        problem = (
            f"no recipe {str(path_or_name)!r}: no such file, and the shipped ones are {', '.join(shipped)}."
        )
        raise RecipeError("", problem + hint, nearest=near)
    if not isinstance(table.get("name", ""), str) or "name" not in table:
        table = {"name": path.stem, **table} if NAME.fullmatch(path.stem) else table
    try:
        return recipe_from(apply(table, overrides), folder)
    except ConfigError as error:
        set_here = any(error.key == k or error.key.startswith(f"{k}.") for k in overrides)
        places = ["--set" if set_here else file, *([error.file] if isinstance(error, RecipeError) else [])]
        raise RecipeError.of(error, ", ".join(filter(None, places)), every_key()) from None


def recipe_from(table: Mapping[str, Any], folder: Path = Path()) -> Recipe:
    """The recipe that a table of tables makes. Raises ConfigError with the dotted key."""
    for key in table:
        if key not in _SECTIONS and key not in _TOP:
            raise ConfigError.unknown(str(key), [*_TOP, *_SECTIONS])
    name = table.get("name", "mine")
    check_name("name", name)
    seed = _whole(table, "seed", 0, 0)
    seeds = _whole(table, "seeds", 1, 1)
    tables = {section: _section_table(table, section) for section in _SECTIONS}
    position = _section("position", PositionOptions, tables["position"])
    loss = _section("loss", LossConfig, tables["loss"])
    train = _section("train", TrainConfig, {"seed": seed, **(tables["train"] or {})}, {"loss": loss})
    tokenize = _section("tokenize", TokenizeOptions, tables["tokenize"])
    given = {"vocab_size": tokenize.vocab_size, "position": position}
    model = _section("model", DecoderConfig, {"max_length": train.length, **(tables["model"] or {})}, given)
    return Recipe(
        name=name,
        seed=seed,
        seeds=seeds,
        corpus=_section("corpus", CorpusOptions, tables["corpus"]),
        tokenize=tokenize,
        model=model,
        position=position,
        train=train,
        loss=loss,
        evaluate=_section("evaluate", EvaluateOptions, tables["evaluate"]),
        generate=_section("generate", GenerateOptions, tables["generate"]),
        retry=_section("retry", RetryOptions, tables["retry"]),
        autophagy=_optional("autophagy", AutophagyOptions, tables["autophagy"]),
        compare=_optional("compare", CompareOptions, tables["compare"]),
        variants=_variants(table, folder),
        folder=folder,
        table=dict(table),
    )


def check_name(key: str, name: Any) -> None:
    """Names become names of files: letters, digits, `.`, `_`, `-`, at most 64, no leading dot."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        accepted = "1 to 64 of A-Z a-z 0-9 . _ - without a leading dot"
        raise ConfigError(key, f"must be {accepted}, got {name!r}")


def _whole(table: Mapping[str, Any], key: str, default: int, least: int) -> int:
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(key, f"must be a whole number >= {least}, got {value!r}")
    return value


def _section_table(table: Mapping[str, Any], section: str) -> dict[str, Any] | None:
    found = table.get(section)
    if found is None or found == "none":
        return None
    if not isinstance(found, Mapping):
        raise ConfigError(section, f"must be a table, got {found!r}")
    return dict(found)


def _section(
    section: str,
    cls: type[T],
    table: Mapping[str, Any] | None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> T:
    """The dataclass of one table; `given` are fields that the table itself may not name."""
    table = table or {}
    known = [f.name for f in fields(cls) if f.name not in given]  # type: ignore[arg-type]
    try:
        for key in table:
            if key not in known:
                raise ConfigError.unknown(key, known)
        built = from_plain(cls, {**_none_words(cls, table), **given})
        if isinstance(built, PositionOptions):
            check_extension(built.extension, "extension")
        return built
    except ConfigError as error:
        raise error.under(section) from None


def _optional(section: str, cls: type[T], table: Mapping[str, Any] | None) -> T | None:
    return None if table is None else _section(section, cls, table)


def _none_words(cls: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null: the word "none" stands for it in fields that may be None, unless it is a choice."""
    hints = get_type_hints(cls)
    result = dict(table)
    for key, value in table.items():
        options = get_args(hints.get(key))
        if isinstance(value, Mapping):
            inner = next(
                (o for o in (hints.get(key), *options) if isinstance(o, type) and is_dataclass(o)), None
            )
            result[key] = value if inner is None else _none_words(inner, value)
        elif value == "none" and (type(None) in options or hints.get(key) is Any):
            result[key] = None
    return result


def _variants(table: Mapping[str, Any], folder: Path) -> tuple[Variant, ...]:
    entries = table.get("variants", [])
    if not isinstance(entries, list | tuple):
        raise ConfigError("variants", f"must be a list of tables, got {entries!r}")
    base = {k: v for k, v in table.items() if k != "variants"}
    found: list[Variant] = []
    for n, entry in enumerate(entries):
        where = f"variants[{n}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(where, f"must be a table, got {entry!r}")
        for key in entry:
            if key not in ("name", "set"):
                raise ConfigError.unknown(f"{where}.{key}", [f"{where}.name", f"{where}.set"])
        name, keys = entry.get("name"), _dotted(entry.get("set", {}))
        check_name(f"{where}.name", name)
        if name == "base" or name in [v.name for v in found]:
            raise ConfigError(f"{where}.name", f'must be a new name (not "base", not twice), got {name!r}')
        if "seeds" in keys or "name" in keys:
            raise ConfigError(f"{where}.set", "can't change name or seeds")
        try:
            found.append(Variant(str(name), keys, recipe_from(apply(base, keys), folder)))
        except ConfigError as error:
            raise RecipeError.of(error, f"variant '{name}'", every_key()) from None
    return tuple(found)


def _dotted(table: Any, where: str = "") -> dict[str, Any]:
    """`set = {model.mixer = "vq"}` and `set = {"model.mixer" = "vq"}` say the same: TOML nests the first."""
    if not isinstance(table, Mapping):
        raise ConfigError("variants.set", f"must be a table of dotted keys, got {table!r}")
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{where}{key}"
        nested = isinstance(value, Mapping) and (name in _SECTIONS or name in _TABLES)
        found |= _dotted(value, f"{name}.") if nested else {name: value}
    return found


_TABLES = ("model.attention", "model.vq", "model.recurrent", "evaluate.length", "loss.cost", "compare.corpus")
