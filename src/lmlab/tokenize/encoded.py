"""What encoding returns: ragged ids, and the lattice of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

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

    def tolist(self) -> list[list[int]]:
        """The ids as Python lists, one a text."""
        lists: list[list[int]] = native.to_lists(self.ids, self.offsets)
        return lists


class Lattice(NamedTuple):
    """Every piece at every place of a text where it fits, by (start, end), with its posterior probability.

    start, end: int64 [edges], bytes; ids: uint32 [edges]; probability: float64 [edges].
    """

    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint32]
    probability: npt.NDArray[np.float64]
