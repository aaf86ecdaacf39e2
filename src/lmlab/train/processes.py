"""One process, or several under torchrun: who writes, whose rows, and sums over all."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed as dist


@dataclass(frozen=True)
class Processes:
    """rank of world; rank 0 writes."""

    rank: int
    world: int
    _last: list[Any] = field(default_factory=list, repr=False)

    def mean(self, values: list[float], device: torch.device) -> list[float]:
        """Each value averaged over the processes (float64)."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        work = dist.all_reduce(tensor, async_op=True)
        work.wait()
        # A thread of gloo may hold the work a moment longer than this one. It must never be the last to let go
        # of a tensor that Python knows: where Python is ending by then, that aborts the process.
        self._last[:] = [work, tensor]
        return [float(value) for value in tensor / self.world]

    def from_first(self, text: str) -> str:
        """Rank 0's text, everywhere."""
        if self.world == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The processes of this run: those of an initialised group, or of torchrun's environment, else one."""
    if not dist.is_available():
        yield Processes(0, 1)
        return
    if dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield Processes(0, 1)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # nobody leaves while another still needs it: rank 0 holds the store
    finally:
        # DistributedDataParallel is in cycles and holds the group: it goes first, so that the group's threads
        # end here, and not while Python is ending, when one that still needs Python aborts the process.
        gc.collect()
        dist.destroy_process_group()
