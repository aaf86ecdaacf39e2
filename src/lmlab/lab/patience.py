"""What the laboratory tries again when a disk or a process fails for a while, and the count of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lmlab.lab.journal import Journal
from lmlab.lab.options import RetryOptions
from lmlab.retry import Counters, Retry, disk, log


@contextmanager
def patience(options: RetryOptions, journal: Journal, stage: str | None) -> Iterator[Retry]:
    """The policy of [retry] for writes and workers in the block. Afterwards a "retries" line of the log says,
    for each function that needed it, how often and how long; no line where all went well at once."""
    counters = Counters()
    try:
        yield disk(attempts=options.attempts, within=options.within, hooks=(log, counters), name=None)
    finally:
        for name in sorted(counters.retries.keys() | counters.gave_up.keys()):
            journal.write(
                stage,
                "retries",
                name=name,
                retries=counters.retries.get(name, 0),
                recovered=counters.recovered.get(name, 0),
                gave_up=counters.gave_up.get(name, 0),
                slept=round(counters.slept.get(name, 0.0), 3),
            )
