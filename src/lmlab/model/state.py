"""What a decoder remembers of the tokens before: one state a layer, moved in place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class AttentionState:
    """Keys and values of one attention layer in buffers that are allocated once and written in place.

    keys, values: [b h_kv capacity e]; the first `position` entries are filled (of row r: `offsets[r]`, where
    the rows of a batch stand at different positions). Keys are rotated already when the layer runs plain
    RoPE and un-rotated where a length extension may move the angles (`lmlab.attention.attend`).
    """

    def __init__(
        self, keys: Float[Tensor, "b g T e"], values: Float[Tensor, "b g T e"], length: int | None
    ) -> None:
        self.keys = keys
        self.values = values
        self.length = length
        self.position = 0
        self.offsets: Int[Tensor, " b"] | None = None

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def reserve(self, length: int) -> None:
        """Make room for `length` positions: the buffers double when they are too small."""
        capacity = self.keys.shape[2]
        if length <= capacity:
            return
        capacity = max(length, 2 * capacity)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def write(self, keys: Float[Tensor, "b g t e"], values: Float[Tensor, "b g t e"]) -> None:
        """Append t positions to every row (one position to each row's own end under `offsets`)."""
        t = keys.shape[2]
        end = self.position + t
        self.reserve(end)
        if self.offsets is None:
            self.keys[:, :, self.position : end] = keys
            self.values[:, :, self.position : end] = values
        else:
            rows = torch.arange(keys.shape[0], device=keys.device)
            for step in range(t):
                self.keys[rows, :, self.offsets + step] = keys[:, :, step]
                self.values[rows, :, self.offsets + step] = values[:, :, step]
        self.advance(t)

    def advance(self, t: int) -> None:
        """Count t positions that were written."""
        if self.offsets is not None:
            self.offsets = self.offsets + t
        self.position += t

    def select(self, rows: Int[Tensor, " r"]) -> AttentionState:
        chosen = AttentionState(self.keys[rows], self.values[rows], self.length)
        chosen.position = self.position
        chosen.offsets = None if self.offsets is None else self.offsets[rows]
        return chosen

    def clone(self) -> AttentionState:
        return self.select(torch.arange(self.keys.shape[0], device=self.keys.device))

    @staticmethod
    def join(states: list[AttentionState]) -> AttentionState:
        """One batch from several, whose rows may stand at different positions."""
        capacity = max(state.keys.shape[2] for state in states)
        for state in states:
            state.reserve(capacity)
        joined = AttentionState(
            torch.cat([state.keys[:, :, :capacity] for state in states]),
            torch.cat([state.values[:, :, :capacity] for state in states]),
            states[0].length,
        )
        joined.position = max(state.position for state in states)
        if any(state.position != joined.position or state.offsets is not None for state in states):
            joined.offsets = torch.cat([state.row_offsets() for state in states])
        return joined

    def row_offsets(self) -> Int[Tensor, " b"]:
        """Every row's position."""
        if self.offsets is not None:
            return self.offsets
        return torch.full((self.keys.shape[0],), self.position, dtype=torch.int64, device=self.keys.device)


class RecurrentState:
    """Hidden state of one recurrent layer: [1 b n] or, for an LSTM, two of these; None before the first step."""

    def __init__(self, hidden: Any, nbytes: int) -> None:
        self.hidden = hidden
        self.nbytes = nbytes

    def _map(self, change: Any) -> RecurrentState:
        parts = self.hidden
        if isinstance(parts, tuple):
            moved: Any = tuple(change(part) for part in parts)
        else:
            moved = None if parts is None else change(parts)
        return RecurrentState(moved, self.nbytes)

    def select(self, rows: Int[Tensor, " r"]) -> RecurrentState:
        chosen = self._map(lambda part: part[:, rows])
        first = self.hidden[0] if isinstance(self.hidden, tuple) else self.hidden
        if first is not None:
            chosen.nbytes = self.nbytes * rows.numel() // first.shape[1]
        return chosen

    def clone(self) -> RecurrentState:
        return self._map(torch.clone)

    @staticmethod
    def join(states: list[RecurrentState]) -> RecurrentState:
        """One batch from several."""
        nbytes = sum(state.nbytes for state in states)
        first = states[0].hidden
        if isinstance(first, tuple):
            parts = zip(*(state.hidden for state in states), strict=True)
            return RecurrentState(tuple(torch.cat(part, dim=1) for part in parts), nbytes)
        return RecurrentState(torch.cat([state.hidden for state in states], dim=1), nbytes)


class DecoderState:
    """All layers' states of a batch. `position`: tokens seen so far (of the longest row)."""

    def __init__(self, layers: list[Any], position: int = 0) -> None:
        self.layers = layers
        self.position = position

    @property
    def nbytes(self) -> int:
        """Memory of all layers' states; it does not grow with position for "vq" and "recurrent" layers."""
        return sum(int(layer.nbytes) for layer in self.layers)

    def select(self, rows: Int[Tensor, " r"]) -> DecoderState:
        """A new state with the given rows of the batch, in that order."""
        return DecoderState([layer.select(rows) for layer in self.layers], self.position)

    def clone(self) -> DecoderState:
        """An independent copy, to branch from."""
        return DecoderState(
            [layer.clone() if hasattr(layer, "clone") else copy.deepcopy(layer) for layer in self.layers],
            self.position,
        )

    @property
    def can_join(self) -> bool:
        """Whether rows at different positions may share one batch (`join`)."""
        return all(hasattr(layer, "join") for layer in self.layers)

    @staticmethod
    def join(states: list[DecoderState]) -> DecoderState:
        """One batch from several whose rows may stand at different positions."""
        columns = zip(*(state.layers for state in states), strict=True)
        layers = [column[0].join(list(column)) for column in columns]
        return DecoderState(layers, max(state.position for state in states))
