"""Tokens on disk, and batches that are a pure function of the step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from lmlab.retry import atomic_write

HEADER = 4096
FORMAT = "lmlab tokens 1"


class TokenFile:
    """A read-only file of token ids: a 4 KiB JSON header, then uint16 (vocab_size <= 65536) or uint32 ids,
    little-endian, every document followed by `end_id`. Made by `write` or `open`."""

    def __init__(self, path: Path, tokens: NDArray[Any], vocab_size: int, end_id: int, sha256: str) -> None:
        self.path = path
        self.vocab_size = vocab_size
        self.end_id = end_id
        self.sha256 = sha256
        self._tokens = tokens

    def __len__(self) -> int:
        """Tokens in the file, end tokens included."""
        return len(self._tokens)

    @classmethod
    def write(
        cls,
        path: str | Path,
        documents: Iterable[Sequence[int] | NDArray[Any]],
        *,
        vocab_size: int,
        end_id: int,
    ) -> TokenFile:
        """Write the documents, each with `end_id` after it, and open the file.

        Raises ValueError for an id outside [0, vocab_size) or when there is no document.
        """
        path = Path(path)
        if vocab_size < 1 or not 0 <= end_id < vocab_size:
            raise ValueError(f"end_id must lie in [0, vocab_size = {vocab_size}), got {end_id}")
        kind = "uint16" if vocab_size <= 1 << 16 else "uint32"
        digest, count, number = hashlib.sha256(), 0, -1
        with atomic_write(path) as file:
            file.write(b"\0" * HEADER)
            for number, document in enumerate(documents):
                ids = np.append(_integers(document, number), end_id)
                low, high = int(ids.min()), int(ids.max())
                if low < 0 or high >= vocab_size:
                    raise ValueError(
                        f"ids of document {number} must lie in [0, {vocab_size}), got {low} to {high}"
                    )
                data = ids.astype(np.dtype(kind).newbyteorder("<")).tobytes()
                digest.update(data)
                file.write(data)
                count += len(ids)
            if number < 0:
                raise ValueError("documents is empty; a token file needs at least one document")
            header = {
                "format": FORMAT,
                "dtype": kind,
                "tokens": count,
                "documents": number + 1,
                "vocab_size": vocab_size,
                "end_id": end_id,
                "sha256": digest.hexdigest(),
            }
            file.seek(0)
            file.write(json.dumps(header).encode().ljust(HEADER))
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> TokenFile:
        """Open a file that `write` made. Raises ValueError when it is something else or damaged."""
        path = Path(path)
        with path.open("rb") as file:
            head = file.read(HEADER)
        try:
            header = json.loads(head)
            count, kind, vocab_size = int(header["tokens"]), str(header["dtype"]), int(header["vocab_size"])
            end_id, sha256 = int(header["end_id"]), str(header["sha256"])
            if header["format"] != FORMAT or kind not in ("uint16", "uint32"):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is not a token file; TokenFile.write makes one") from None
        width = np.dtype(kind).itemsize
        size = path.stat().st_size
        if size != HEADER + count * width:
            raise ValueError(
                f"{path} is damaged: {HEADER + count * width} bytes expected for {count} tokens, found {size}"
            )
        tokens = np.memmap(
            path, dtype=np.dtype(kind).newbyteorder("<"), mode="r", offset=HEADER, shape=(count,)
        )
        if hashlib.sha256(tokens.data).hexdigest() != sha256:
            raise ValueError(f"{path} is damaged: its tokens don't have the sha256 in its header")
        return cls(path, tokens, vocab_size, end_id, sha256)

    def windows(self, length: int) -> int:
        """Windows of length + 1 tokens in an epoch, at stride `length`, whatever the epoch's offset.

        Raises ValueError when there is none.
        """
        count = (len(self) - length) // length
        if count < 1:
            raise ValueError(
                f"{self.path} holds {len(self)} tokens; windows of length {length} need at least "
                f"{2 * length}. Take a smaller train.length or more text"
            )
        return count

    def batch(
        self, step: int, *, batch_size: int, length: int, seed: int, rank: int = 0, world: int = 1
    ) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """(inputs, targets) of step `step` (0 is the first), int64, for process `rank` of `world`.

        Pure in its arguments. The windows of an epoch start at an offset drawn in [0, length) and come in an
        order drawn from Philox(seed, epoch), each once; batches run on across epochs. The processes' rows,
        one after the other, are the rows of world = 1.
        """
        if step < 0 or batch_size < 1 or length < 1 or not 0 <= rank < world or batch_size % world:
            raise ValueError(
                "batch(step >= 0, batch_size=a multiple of world, length >= 1, rank in [0, world)), got "
                f"step={step}, batch_size={batch_size}, length={length}, rank={rank}, world={world}"
            )
        count = self.windows(length)
        local = batch_size // world
        first = step * batch_size + rank * local
        starts = np.empty(local, dtype=np.int64)
        for row, sample in enumerate(range(first, first + local)):
            epoch, index = divmod(sample, count)
            offset, order = _epoch(seed, epoch, count, length)
            starts[row] = offset + length * order[index]
        rows = self._tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
        ids = torch.from_numpy(rows)
        return ids[:, :-1], ids[:, 1:]

    def in_order(self, length: int, batch_size: int, limit: int) -> Iterable[tuple[Tensor, Tensor]]:
        """The first `limit` windows of the file in batches: for a loss that is compared over time."""
        for first in range(0, min(limit, self.windows(length)), batch_size):
            index = np.arange(first, min(first + batch_size, limit, self.windows(length)))
            rows = self._tokens[index[:, None] * length + np.arange(length + 1)].astype(np.int64)
            ids = torch.from_numpy(rows)
            yield ids[:, :-1], ids[:, 1:]


def _integers(document: Sequence[int] | NDArray[Any], number: int) -> NDArray[np.int64]:
    ids = np.asarray(document)
    if ids.size and (ids.dtype.kind not in "iu" or ids.ndim != 1):
        raise ValueError(
            f"document {number} must be a flat list of integer ids, got {ids.dtype} {list(ids.shape)}"
        )
    return ids.astype(np.int64)


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, count: int, length: int) -> tuple[int, NDArray[np.int64]]:
    """The offset of an epoch's windows and their order, from raw Philox bits (numpy keeps those stable)."""
    key = np.array([seed & ((1 << 64) - 1), epoch], dtype=np.uint64)
    draws = np.random.Philox(key=key).random_raw(count + 1)
    return int(draws[0] % np.uint64(length)), np.argsort(draws[1:], kind="stable")
