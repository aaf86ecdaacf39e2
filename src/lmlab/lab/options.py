"""The tables of a recipe that belong to the laboratory: one frozen dataclass each, checked when made.

The other tables belong to the rooms: [model], [position], [train], [loss], [autophagy].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lmlab.model.errors import ConfigError
from lmlab.model.fields import check_fields, require
from lmlab.rope.compose import extension_from_table
from lmlab.train.config import LossConfig

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")  # of recipes, variants and corpora


def _at_least(instance: Any, least: int, *keys: str) -> None:
    for key in keys:
        value = getattr(instance, key)
        require(value is None or value >= least, key, f"a whole number >= {least}", value)


def _share(instance: Any, *keys: str, low: float = 0.0, high: float = 1.0) -> None:
    for key in keys:
        value = getattr(instance, key)
        require(value is None or low <= value <= high, key, f"a number from {low:g} to {high:g}", value)


@dataclass(frozen=True)
class CorpusOptions:
    """[corpus]: where the text is and how it falls into documents."""

    path: str | None = None  # file, directory or glob, relative to the recipe
    name: str | None = None  # "sample" (the default), "recall", "passages", or a fetched corpus
    format: Literal["auto", "text", "lines", "jsonl", "parquet"] = "auto"
    field: str = "text"
    document_separator: str = "\n\n\n"
    held_out: float = 0.05  # share of the bytes, by document
    max_bytes: int | None = None
    max_document_bytes: int = 10_000_000
    errors: Literal["skip", "replace"] = "skip"
    seed: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.path is None or self.name is None, "path", "left out when name is given", self.path)
        require(
            self.name is None or NAME.fullmatch(self.name) is not None,
            "name",
            '"sample", "recall", "passages" or a fetched corpus',
            self.name,
        )
        require(0 < self.held_out < 1, "held_out", "a share between 0 and 1", self.held_out)
        _at_least(self, 1, "max_bytes", "max_document_bytes")


@dataclass(frozen=True)
class TokenizeOptions:
    """[tokenize]: the arguments of `Tokenizer.train`, or a tokenizer to load; alpha samples the train split."""

    vocab_size: int = 4096
    load: str | None = None
    alpha: float | None = None
    max_piece_bytes: int = 18
    min_count: int = 2
    pruning: Literal["compression", "likelihood"] = "compression"
    characters_whole: bool = True
    boundaries: str = "\n"
    split_digits: bool = False
    normalize: Literal["nfc", "none"] = "none"
    special_tokens: tuple[str, ...] = ()
    memory_limit: str = "1GiB"
    seed: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        least = 256 + len(self.special_tokens)
        require(self.vocab_size >= least, "vocab_size", f"a whole number >= {least}", self.vocab_size)
        require(self.alpha is None or self.alpha >= 0, "alpha", "a number >= 0", self.alpha)
        require(1 <= self.max_piece_bytes <= 255, "max_piece_bytes", "from 1 to 255", self.max_piece_bytes)
        _at_least(self, 1, "min_count")
        _at_least(self, 0, "seed")


@dataclass(frozen=True)
class PasskeyOptions:
    """[evaluate.length.passkey]: a key hidden at a depth of a text of random ids."""

    lengths: tuple[int, ...] = ()  # empty: the contexts
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    key: int = 5
    trials: int = 8

    def __post_init__(self) -> None:
        check_fields(self)
        require(all(0 <= d <= 1 for d in self.depths), "depths", "shares from 0 to 1", self.depths)
        _at_least(self, 1, "key", "trials")


@dataclass(frozen=True)
class LengthOptions:
    """[evaluate.length]: loss against length, for each extension, with the window always beside."""

    contexts: tuple[int, ...] = ()  # tokens; empty: 1, 2 and 4 times the trained length
    last: int = 64
    extensions: tuple[Any, ...] = ()  # tables of `lmlab.rope`, or lists of them
    passkey: bool | PasskeyOptions = False

    def __post_init__(self) -> None:
        check_fields(self)
        require(all(c >= 1 for c in self.contexts), "contexts", "whole numbers >= 1", list(self.contexts))
        _at_least(self, 1, "last")
        for n, table in enumerate(self.extensions):
            check_extension(table, f"extensions[{n}]")


@dataclass(frozen=True)
class EvaluateOptions:
    """[evaluate]: how much of the held-out text is scored, and how."""

    max_bytes: int = 200_000
    stride: int | None = None
    batch_size: int = 16
    typos: float | None = None  # share of letters that go wrong in a second measurement
    length: LengthOptions | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        good = self.typos is None or 0 < self.typos <= 0.5
        require(good, "typos", "a share of letters, above 0 and at most 0.5", self.typos)
        _at_least(self, 1, "max_bytes", "stride", "batch_size")


@dataclass(frozen=True)
class GenerateOptions:
    """[generate]: samples for each prompt; no prompt: from the beginning of a document."""

    samples: int = 8
    max_new_tokens: int = 128
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    prompts: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _at_least(self, 1, "max_new_tokens", "top_k")
        _at_least(self, 0, "samples", "seed")
        require(self.temperature >= 0, "temperature", "a number >= 0", self.temperature)
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _share(self, "min_p")


@dataclass(frozen=True)
class RetryOptions:
    """[retry]: the policy of work that may fail for a while."""

    attempts: int = 5
    within: float | None = None
    kills: int = 3
    workers: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _at_least(self, 1, "attempts", "kills", "workers")
        require(self.within is None or self.within > 0, "within", "seconds > 0", self.within)


def loss_of(entry: Any) -> LossConfig:
    """The loss that an entry of compare.losses names: "emo", or a table as [loss]."""
    return LossConfig.from_dict({"name": entry} if isinstance(entry, str) else entry)


@dataclass(frozen=True)
class CompareOptions:
    """[compare]: one checkpoint, fine-tuned on a second text with every loss."""

    losses: tuple[Any, ...] = ("ce", "emo")
    seeds: int = 5
    steps: int = 100
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    prompts: int = 32
    new_tokens: int = 64
    corpus: CorpusOptions = field(default_factory=CorpusOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        _at_least(self, 1, "seeds", "steps", "prompts", "new_tokens")
        for n, entry in enumerate(self.losses):
            require(isinstance(entry, str | Mapping), f"losses[{n}]", "a name, or a table as [loss]", entry)
            try:
                loss_of(entry)
            except ConfigError as error:
                raise error.under(f"losses[{n}]") from None
        require(
            "ce" in self.losses,
            "losses",
            'a list with "ce", which the others are held against',
            list(self.losses),
        )
        require(
            len(self.learning_rates) > 0 and all(r > 0 for r in self.learning_rates),
            "learning_rates",
            "numbers > 0",
            list(self.learning_rates),
        )


def check_extension(table: Any, key: str) -> None:
    for entry in table if isinstance(table, list | tuple) else [table]:
        if entry is not None and not isinstance(entry, Mapping):
            accepted = 'a table such as {method = "rerope", window = 1024}, or a list of such'
            raise ConfigError(key, f"must be {accepted}, got {entry!r}")
    try:
        extension_from_table(table)
    except (ValueError, TypeError) as error:
        raise ConfigError(key, f"isn't an extension: {error}") from None
