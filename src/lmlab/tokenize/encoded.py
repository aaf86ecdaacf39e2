"""What encoding returns: ragged ids, and the lattice of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from lmlab._native import tokenize as native


@dataclass(frozen=True, eq=False)
class Encoded(Sequence[npt.NDArray[np.uint32]]):
    """The ids of many texts, one after another.

    ids: uint32 [sum t]; offsets: int64 [len + 1]. Text i has the ids `ids[offsets[i]:offsets[i + 1]]`.
    """

    ids: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    _core: Any = field(default=None, repr=False)  # of the vocabulary: it has its ids as Python ints at hand

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[np.uint32]: ...
    @overload
    def __getitem__(self, index: slice) -> list[npt.NDArray[np.uint32]]: ...
    def __getitem__(self, index: int | slice) -> npt.NDArray[np.uint32] | list[npt.NDArray[np.uint32]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        index %= len(self)
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def __reduce__(self) -> tuple[Any, ...]:
        return Encoded, (self.ids, self.offsets)

    def tolist(self) -> list[list[int]]:
        """The ids as Python lists, one a text."""
        make = native.to_lists if self._core is None else self._core.to_lists
        lists: list[list[int]] = make(self.ids, self.offsets)
        return lists


class Lattice(NamedTuple):
    """Every piece at every place of a text where it fits, by (start, end), with its posterior probability.

    start, end: int64 [edges], bytes; ids: uint32 [edges]; probability: float64 [edges].
    """

    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint32]
    probability: npt.NDArray[np.float64]
