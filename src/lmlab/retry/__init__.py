"""Retry that reads like plain Python: `for attempt in io: with attempt: ...`, and its other faces.

Depends on nothing outside the standard library, and loads neither asyncio nor multiprocessing nor logging
before they are used. Policies: `Retry`, `network`, `disk`. See docs/retry.md.
"""

from lmlab.retry.budget import Budget
from lmlab.retry.deadline import remaining
from lmlab.retry.engine import Attempt
from lmlab.retry.events import Counters, Event, log
from lmlab.retry.files import atomic_write
from lmlab.retry.match import Rejected, caused_by, transient
from lmlab.retry.policy import Retry, disk, network
from lmlab.retry.quiet import Outcome
from lmlab.retry.stream import Stream
from lmlab.retry.supervise import WorkerKilled
from lmlab.retry.wait import backoff

__all__ = [
    "Attempt",
    "Budget",
    "Counters",
    "Event",
    "Outcome",
    "Rejected",
    "Retry",
    "Stream",
    "WorkerKilled",
    "atomic_write",
    "backoff",
    "caused_by",
    "disk",
    "log",
    "network",
    "remaining",
    "transient",
]
