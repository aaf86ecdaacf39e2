"""What goes wrong with a configuration or a checkpoint, said once, at the door."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """A configuration key that is unknown or holds a value that isn't accepted.

    `key` is the dotted name (`"attention.window"`), `nearest` the known key that an unknown one is
    closest to, or None.
    """

    def __init__(
        self, key: str, problem: str, *, nearest: str | None = None, known: Iterable[str] = ()
    ) -> None:
        self.key = key
        self.problem = problem
        self.nearest = nearest
        self.known = tuple(known)
        super().__init__(self._text())

    @classmethod
    def unknown(cls, key: str, known: Iterable[str]) -> ConfigError:
        """The error for a key that isn't one of `known`."""
        known = tuple(known)
        near = get_close_matches(key, known, n=1, cutoff=0.5)
        return cls(key, "unknown key", nearest=near[0] if near else None, known=known)

    def under(self, section: str) -> ConfigError:
        """The same error, seen from the configuration that holds this one as `section`."""
        nearest = None if self.nearest is None else f"{section}.{self.nearest}"
        return type(self)(
            f"{section}.{self.key}",
            self.problem,
            nearest=nearest,
            known=[f"{section}.{k}" for k in self.known],
        )

    def _text(self) -> str:
        if self.problem != "unknown key":
            return f"'{self.key}' {self.problem}"
        if self.nearest is not None:
            return f"unknown key '{self.key}'. Did you mean '{self.nearest}'?"
        return f"unknown key '{self.key}'. Known: {', '.join(self.known)}"


class CheckpointError(ValueError):
    """A saved model that can't be read: the message names file, tensor or key, what was expected and found."""
