"""The codes of each key head: k-means at the start, then a moving average of the keys that fall to each code.

`forward` quantises and, in training, records; `step` moves the codes once by all that was recorded. So
several micro-batches count as one batch, and what activation checkpointing runs a second time counts once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lmlab.attention.vq.assign import assign_codes

EMPTY = 1e-6  # a code whose moving count is below this keeps its place
ALIVE = 0.05  # share of the mean use from which a code is counted as alive
FIT_KEYS = 64  # keys a code that k-means looks at, at most


@dataclass(frozen=True)
class CodebookStats:
    """Health of a codebook, one number a head [h].

    alive: share of codes that keys fall to at least ALIVE times as often as to the mean code. perplexity: exp of
    the entropy of how often. Both by a moving average of the keys alone: the count that a revived code starts
    with is not in it. relative_error: sum |k - C_z|^2 / sum |k|^2 of the keys recorded last. revived: codes moved.
    """

    alive: Tensor
    perplexity: Tensor
    relative_error: Tensor
    revived: Tensor

    def mean(self) -> CodebookStats:
        """Each number's mean over the heads, as tensors without axes."""
        return CodebookStats(
            *(x.double().mean() for x in (self.alive, self.perplexity, self.relative_error, self.revived))
        )


class Codebook(nn.Module):
    """Codes [h s d] that follow the keys.

    One step with counts n and sums of keys S': N <- decay N + (1 - decay) n, S <- decay S + (1 - decay) S',
    C = S / N. A code with N below `revive` times the mean is dead: it moves to a recorded key, drawn in
    proportion to the key's squared error, and starts with the mean count (revive 0: never).
    init "kmeans": the first batch in training is clustered; "normal": N(0, 1) and no clustering.
    embedding, count, total and used, the count without what revival adds, are buffers in float32 or wider,
    whatever `.half()` says.
    """

    embedding: Tensor
    count: Tensor
    total: Tensor
    used: Tensor
    steps: Tensor

    def __init__(
        self,
        heads: int,
        codes: int,
        dim: int,
        *,
        decay: float = 0.99,
        revive: float = 0.05,
        init: Literal["kmeans", "normal"] = "kmeans",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("heads", heads), ("codes", codes), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        if not revive >= 0:
            raise ValueError(f"revive must be >= 0, got {revive}")
        if init not in ("kmeans", "normal"):
            raise ValueError(f'init must be "kmeans" or "normal", got {init!r}')
        self.heads, self.codes, self.dim = heads, codes, dim
        self.decay, self.revive, self.seed = decay, revive, seed
        embedding = torch.randn(heads, codes, dim, generator=self._generator("start", 0))
        self.register_buffer("embedding", embedding)
        self.register_buffer("count", torch.full((heads, codes), float(init == "normal")))
        self.register_buffer("total", embedding * self.count[..., None])
        self.register_buffer("used", self.count.clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._record: _Record | None = None
        self._records = 0
        self._last_error = torch.full((heads,), float("nan"))
        self._revived = torch.zeros(heads, dtype=torch.int64)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        """Moves with the module, but never below float32: a count in half precision stops at 2048."""
        wide = {name: getattr(self, name) for name in ("embedding", "count", "total", "used")}
        super()._apply(fn, recurse)
        for name, before in wide.items():
            now = getattr(self, name)
            if now.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, before.to(now.device))
        return self

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}:{purpose}:{number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def forward(
        self, k: Float[Tensor, "b h t d"], key_mask: Bool[Tensor, "b t"] | None = None
    ) -> tuple[Float[Tensor, "b h t d"], Int[Tensor, "b h t"], Tensor]:
        """(k-hat, codes, commitment): k-hat has the value of the codes and passes its gradient to k;
        commitment is the mean of |k - C_z|^2 over the keys, unweighted. In training the keys are recorded."""
        wide = k.detach().to(torch.promote_types(k.dtype, torch.float32))
        recording = self.training and not _in_backward()
        if recording and not bool(self.count.any()):
            self.fit(wide if key_mask is None else wide.transpose(1, 2)[key_mask].transpose(0, 1)[None])
        codes = assign_codes(k, self.embedding)
        quantised = self.embedding[torch.arange(self.heads, device=k.device)[:, None], codes]
        error = (k - quantised).square().sum(-1)
        if recording:
            self._add(wide, codes, key_mask)
        kept = error if key_mask is None else error * key_mask[:, None]
        keys = error.numel() if key_mask is None else max(1, int(key_mask.sum()) * self.heads)
        return _StraightThrough.apply(k, quantised.to(k.dtype)), codes, kept.sum() / max(1, keys)

    @torch.no_grad()
    def _add(self, k: Tensor, codes: Tensor, key_mask: Tensor | None) -> None:
        b, h, t, d = k.shape
        seen = torch.ones(b, t, dtype=torch.bool, device=k.device) if key_mask is None else key_mask
        keys = k.transpose(0, 1).reshape(h, b * t, d).to(self.embedding.dtype)
        place = codes.transpose(0, 1).reshape(h, b * t)
        weight = seen.reshape(1, b * t).expand(h, -1).to(keys.dtype)
        count = torch.zeros_like(self.count).scatter_add_(1, place, weight)
        total = torch.zeros_like(self.total).scatter_add_(
            1, place[..., None].expand_as(keys), keys * weight[..., None]
        )
        error = (keys - self.embedding.gather(1, place[..., None].expand_as(keys))).square().sum(-1) * weight
        # Gumbel's trick: the largest log(error) + noise are draws in proportion to the error, none twice
        generator = self._generator("draw", int(self.steps) * 4096 + self._records)
        noise = -torch.empty(h, b * t).exponential_(generator=generator).log().to(keys)
        rank, chosen = (error.log() + noise).topk(min(self.codes, b * t), 1)
        candidates = keys.gather(1, chosen[..., None].expand(-1, -1, d))
        square = (keys.square().sum(-1) * weight).sum(1)
        new = _Record(count, total, error.sum(1), square, rank, candidates)
        self._record = new if self._record is None else self._record.with_(new, self.codes)
        self._records += 1

    @torch.no_grad()
    def step(self) -> CodebookStats:
        """Moves the codes by what was recorded since the last step, over all processes; then revives.

        Without a record nothing changes."""
        record = self._record
        if _distributed():
            record = _gathered(record, self)
        self._record, self._records = None, 0
        if record is None:
            return self.stats()
        self.count.mul_(self.decay).add_(record.count, alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(record.total, alpha=1 - self.decay)
        self.used.mul_(self.decay).add_(record.count, alpha=1 - self.decay)
        moved = self.count > EMPTY
        centre = self.total / self.count.clamp(min=EMPTY)[..., None]
        self.embedding.copy_(torch.where(moved[..., None], centre, self.embedding))
        self._last_error = record.error / record.square.clamp(min=torch.finfo(record.square.dtype).tiny)
        self._revived = self._revive(record)
        self.steps += 1
        return self.stats()

    def _revive(self, record: _Record) -> Tensor:
        mean = self.count.mean(1)
        revived = torch.zeros(self.heads, dtype=torch.int64, device=self.count.device)
        for head in range(self.heads):
            dead = (self.count[head] < self.revive * mean[head]).nonzero()[:, 0]
            usable = record.candidates[head][record.rank[head].isfinite()]
            dead = dead[: len(usable)]
            self.embedding[head, dead] = usable[: len(dead)]
            self.count[head, dead] = mean[head]
            # without this the next step would divide the old sum by the new count and undo the move
            self.total[head, dead] = usable[: len(dead)] * mean[head]
            revived[head] = len(dead)
        return revived

    @torch.no_grad()
    def fit(self, k: Float[Tensor, "b h t d"], iterations: int = 10, seed: int | None = None) -> float:
        """Codes by k-means++ and Lloyd's iterations on these keys; returns sum |k - C_z|^2 / sum |k|^2.

        With fewer keys than codes the rest repeat keys and count 0: they are dead until they are revived.
        """
        h, d = self.heads, self.dim
        keys = k.detach().transpose(0, 1).reshape(h, -1, d).to(self.embedding.dtype)
        if keys.shape[1] == 0:
            raise ValueError("k holds no keys to fit codes to")
        generator = self._generator("fit", self.seed if seed is None else seed)
        if keys.shape[1] > FIT_KEYS * self.codes:
            keys = keys[:, torch.randperm(keys.shape[1], generator=generator)[: FIT_KEYS * self.codes]]
        for head in range(h):
            self.embedding[head] = _plus_plus(keys[head], self.codes, generator)
        for _ in range(iterations):
            place = assign_codes(keys[None], self.embedding)[0]
            self.count.zero_().scatter_add_(1, place, torch.ones_like(keys[..., 0]))
            self.total.zero_().scatter_add_(1, place[..., None].expand_as(keys), keys)
            centre = self.total / self.count.clamp(min=1)[..., None]
            self.embedding.copy_(torch.where((self.count > 0)[..., None], centre, self.embedding))
        if _distributed():
            for buffer in (self.embedding, self.count):
                torch.distributed.broadcast(buffer, 0)
        self.total.copy_(self.embedding * self.count[..., None])
        self.used.copy_(self.count)
        place = assign_codes(keys[None], self.embedding)[0]
        left = (keys - self.embedding.gather(1, place[..., None].expand_as(keys))).square().sum((1, 2))
        self._last_error = left / keys.square().sum((1, 2)).clamp(min=torch.finfo(keys.dtype).tiny)
        return float(self._last_error.mean())

    def stats(self) -> CodebookStats:
        """The codebook's health now."""
        share = self.used / self.used.sum(1, keepdim=True).clamp(min=EMPTY)
        entropy = -(share * share.clamp(min=1e-30).log()).sum(1)
        alive = share > ALIVE / self.codes
        return CodebookStats(
            alive.double().mean(1), entropy.exp(), self._last_error.clone(), self._revived.clone()
        )

    def extra_repr(self) -> str:
        return f"heads={self.heads}, codes={self.codes}, dim={self.dim}, decay={self.decay}, revive={self.revive}"


@dataclass(frozen=True)
class _Record:
    """Sums of a batch a head, and keys that could become codes: rank [h c] (larger first), candidates [h c d]."""

    count: Tensor
    total: Tensor
    error: Tensor
    square: Tensor
    rank: Tensor
    candidates: Tensor

    def with_(self, other: _Record, most: int) -> _Record:
        rank = torch.cat([self.rank, other.rank], 1)
        candidates = torch.cat([self.candidates, other.candidates], 1)
        top, chosen = rank.topk(min(most, rank.shape[1]), 1)
        return _Record(
            self.count + other.count,
            self.total + other.total,
            self.error + other.error,
            self.square + other.square,
            top,
            candidates.gather(1, chosen[..., None].expand(-1, -1, candidates.shape[-1])),
        )


class _StraightThrough(torch.autograd.Function):
    """The quantised keys to the last bit; their gradient goes to the keys."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, quantised: Tensor) -> Tensor:
        return quantised.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _plus_plus(keys: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii, 2007): each next centre in proportion to its squared distance."""
    n = len(keys)
    first = int(torch.randint(n, (), generator=generator))
    chosen = [first]
    distance = (keys - keys[first]).square().sum(-1)
    draws = torch.rand(codes, generator=generator, dtype=torch.float64)
    for u in draws[1:]:
        mass = distance.double().cumsum(0)
        if float(mass[-1]) > 0:
            pick = int(torch.searchsorted(mass, (u * mass[-1]).to(mass.device), right=True).clamp(max=n - 1))
        else:  # every key is a centre already
            pick = len(chosen) % n
        chosen.append(pick)
        distance = torch.minimum(distance, (keys - keys[pick]).square().sum(-1))
    return keys[chosen]


def _in_backward() -> bool:
    """Whether autograd is at work: activation checkpointing then runs a forward a second time."""
    current: int = torch._C._current_graph_task_id()
    return current != -1


def _distributed() -> bool:
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _gathered(record: _Record | None, codebook: Codebook) -> _Record | None:
    """The records of all processes as one, the same in each; None where none has one."""
    world = torch.distributed.get_world_size()
    if record is None:
        nothing = codebook.count.new_zeros
        h, d = codebook.heads, codebook.dim
        record = _Record(
            torch.zeros_like(codebook.count),
            torch.zeros_like(codebook.total),
            nothing(h),
            nothing(h),
            nothing(h, 0),
            nothing(h, 0, d),
        )
    for part in (record.count, record.total, record.error, record.square):
        torch.distributed.all_reduce(part)
    if not bool(record.count.any()):
        return None
    width = codebook.codes
    rank = record.rank.new_full((codebook.heads, width), float("-inf"))
    keys = record.candidates.new_zeros(codebook.heads, width, codebook.dim)
    rank[:, : record.rank.shape[1]] = record.rank
    keys[:, : record.rank.shape[1]] = record.candidates
    ranks, candidates = (
        [torch.empty_like(rank) for _ in range(world)],
        [torch.empty_like(keys) for _ in range(world)],
    )
    torch.distributed.all_gather(ranks, rank)
    torch.distributed.all_gather(candidates, keys)
    top, chosen = torch.cat(ranks, 1).topk(width, 1)
    joined = torch.cat(candidates, 1).gather(1, chosen[..., None].expand(-1, -1, codebook.dim))
    return _Record(record.count, record.total, record.error, record.square, top, joined)
