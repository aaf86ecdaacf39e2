"""Trials in blocks: work side by side whose result doesn't depend on how many threads there are."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_blocks(work: Callable[[int, slice], None], trials: int, size: int, threads: int | None) -> None:
    """work(block, trials of the block), blocks side by side; a block's result depends on its number alone."""
    blocks = [(b, slice(b * size, min((b + 1) * size, trials))) for b in range(math.ceil(trials / size))]
    workers = min(len(blocks), threads or processors())
    if workers == 1:
        for block in blocks:
            work(*block)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda block: work(*block), blocks))
