"""What VQ attention remembers of a sequence: of constant size, whatever its length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class VQState:
    """Merged keys by code, and the last window - 1 keys one by one.

    count [b g s] and mean [b g s e]: how many keys a code stands for and the mean of their values.
    recent_codes [b g r] (-1: none) and recent_values [b g r e]: a ring, the key of position p in place p mod r.
    seen [b]: keys so far without the masked ones. position: tokens so far, masked ones included.
    It never carries gradient. `vq_attention` moves it in place and returns the same object.
    """

    count: Float[Tensor, "b g s"]
    mean: Float[Tensor, "b g s e"]
    recent_codes: Int[Tensor, "b g r"]
    recent_values: Float[Tensor, "b g r e"]
    seen: Int[Tensor, " b"]
    position: int = 0

    @classmethod
    def empty(
        cls,
        batch: int,
        kv_heads: int,
        codes: int,
        value_dim: int,
        *,
        window: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> VQState:
        """The state before the first token. window: width of the bias or of the rotary window, 0 for neither."""
        r = max(0, window - 1)
        return cls(
            count=torch.zeros(batch, kv_heads, codes, dtype=dtype, device=device),
            mean=torch.zeros(batch, kv_heads, codes, value_dim, dtype=dtype, device=device),
            recent_codes=torch.full((batch, kv_heads, r), -1, dtype=torch.int64, device=device),
            recent_values=torch.zeros(batch, kv_heads, r, value_dim, dtype=dtype, device=device),
            seen=torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.count, self.mean, self.recent_codes, self.recent_values, self.seen

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors; does not grow with the sequence."""
        return sum(x.numel() * x.element_size() for x in self._tensors())

    def clone(self) -> VQState:
        """A copy that goes its own way."""
        return self._map(torch.clone)

    def select(self, rows: Int[Tensor, " k"]) -> VQState:
        """The state of some rows of the batch, in the order given."""
        return self._map(lambda x: x.index_select(0, rows))

    def _map(self, change: Callable[[Tensor], Tensor]) -> VQState:
        count, mean, codes, values, seen = map(change, self._tensors())
        return VQState(count, mean, codes, values, seen, self.position)

    def last(self, length: int) -> tuple[Int[Tensor, "b g k"], Float[Tensor, "b g k e"]]:
        """Codes and values of the last `length` keys, oldest first; code -1 where there was none."""
        r = self.recent_codes.shape[-1]
        places = (self.position - length + torch.arange(length, device=self.count.device)) % max(r, 1)
        return self.recent_codes[:, :, places], self.recent_values[:, :, places]

    def push(self, codes: Int[Tensor, "b g t"], values: Float[Tensor, "b g t e"]) -> None:
        """Writes keys into the ring and counts them; what falls out of the ring is for the caller to merge."""
        t, r = codes.shape[-1], self.recent_codes.shape[-1]
        kept = min(t, r)
        if kept:
            places = (self.position + torch.arange(t - kept, t, device=codes.device)) % r
            self.recent_codes[:, :, places] = codes[:, :, t - kept :]
            self.recent_values[:, :, places] = values[:, :, t - kept :].to(self.recent_values.dtype)
        self.seen += (codes[:, 0] >= 0).sum(-1)
        self.position += t
