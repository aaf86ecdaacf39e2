"""Work spread over processes that may die: each item is done once, however many workers it takes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from lmlab.retry import Retry

I = TypeVar("I")  # noqa: E741 (an item)
T = TypeVar("T")


def spread(
    function: Callable[[I], T], items: Sequence[I], workers: int, retry: Retry, kills: int
) -> Iterator[T]:
    """`function` of each item, as they are done. A process that dies (the system ends one when memory is
    short) costs its item another go, up to `kills` times; so does what `retry` covers. The threads are
    shared out."""
    workers = min(workers, len(items))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Forked from a process that has torch and nothing else: no thread, and no second of import for each.
    multiprocessing.set_forkserver_preload(["torch", "lmlab.lab.pipeline", "lmlab.train", "lmlab.evaluate"])
    yield from retry.map(
        partial(_with_threads, function, max(1, cpus // workers)),
        items,
        workers=workers,
        kills=kills,
        ordered=False,
        context="forkserver",
    )


def _with_threads(function: Callable[[I], T], threads: int, item: I) -> T:
    import torch

    torch.set_num_threads(threads)
    return function(item)
