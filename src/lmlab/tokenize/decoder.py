"""Decoding a stream of ids: text as soon as its characters are whole."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Decoder:
    """Made by `Tokenizer.decoder`. What all calls return, joined, is what `Tokenizer.decode` returns."""

    def __init__(
        self, to_bytes: Callable[[Sequence[int] | npt.NDArray[np.integer]], bytes], errors: str
    ) -> None:
        self._to_bytes = to_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)

    def feed(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """The text that these ids complete; bytes of a half character wait for the next call."""
        return self._utf8.decode(self._to_bytes(ids))

    def finish(self) -> str:
        """What is left of a half character, treated as `errors` says; the decoder can then be used anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
