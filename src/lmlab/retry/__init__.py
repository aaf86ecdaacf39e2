"""Retry that reads like plain Python: `for attempt in io: with attempt: ...`, and its other faces.

Depends on nothing outside the standard library, and loads neither asyncio nor multiprocessing nor logging
before they are used. Policies: `Retry`, `network`, `disk`. See docs/retry.md.
"""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.retry.budget import Budget as Budget
    from lmlab.retry.deadline import remaining as remaining
    from lmlab.retry.engine import Attempt as Attempt
    from lmlab.retry.events import Counters as Counters
    from lmlab.retry.events import Event as Event
    from lmlab.retry.events import log as log
    from lmlab.retry.files import atomic_write as atomic_write
    from lmlab.retry.match import Rejected as Rejected
    from lmlab.retry.match import caused_by as caused_by
    from lmlab.retry.match import transient as transient
    from lmlab.retry.policy import Retry as Retry
    from lmlab.retry.policy import disk as disk
    from lmlab.retry.policy import network as network
    from lmlab.retry.quiet import Outcome as Outcome
    from lmlab.retry.stream import Stream as Stream
    from lmlab.retry.supervise import WorkerKilled as WorkerKilled
    from lmlab.retry.wait import backoff as backoff

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

__getattr__, __dir__ = door(
    __name__,
    {
        "budget": ["Budget"],
        "deadline": ["remaining"],
        "engine": ["Attempt"],
        "events": ["Counters", "Event", "log"],
        "files": ["atomic_write"],
        "match": ["Rejected", "caused_by", "transient"],
        "policy": ["Retry", "disk", "network"],
        "quiet": ["Outcome"],
        "stream": ["Stream"],
        "supervise": ["WorkerKilled"],
        "wait": ["backoff"],
    },
)
