"""Which errors may pass: by class, through the chain of causes, or as troubles of network and disk."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any

_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_UNREACHABLE = frozenset(
    getattr(errno, name) for name in ("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH")
)
_DISK = frozenset({errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR})


class Rejected(Exception):
    """Raise it in the body to say "this result won't do": the innermost policy retries it, whatever its `on`.

    `after` (seconds) acts as a server's Retry-After.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after
        self.spent = False  # True once a policy gave up on it: outer policies then go by their `on`

    def __str__(self) -> str:
        return str(self.args[0]) or "the result was rejected"


class CausedBy:
    """The predicate that `caused_by` makes; equal types make equal, picklable objects."""

    __slots__ = ("types",)

    types: tuple[type[Exception], ...]

    def __init__(self, *types: type[Exception]) -> None:
        for one in types:
            if not (isinstance(one, type) and issubclass(one, Exception)):
                raise TypeError(
                    f"types: expected exception classes, got {one!r}. Right: caused_by(OSError, TimeoutError)"
                )
        if not types:
            raise TypeError("types: expected at least one exception class. Right: caused_by(OSError)")
        self.types = types

    def __call__(self, error: Exception) -> bool:
        return through_chain(error, lambda link: isinstance(link, self.types) or None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CausedBy) and self.types == other.types

    def __hash__(self) -> int:
        return hash(self.types)

    def __repr__(self) -> str:
        return f"caused_by({', '.join(one.__name__ for one in self.types)})"


def caused_by(*types: type[Exception]) -> Callable[[Exception], bool]:
    """A predicate: the error, or one that it came from, is an instance of `types`.

    It follows `__cause__`, else `__context__` unless `raise ... from None` hid it; a group matches when
    every leaf does. Example: `torch.save` turns an EIO of a file object into a `RuntimeError` whose
    `__context__` is the `OSError`, and `Retry(caused_by(OSError))` retries it.
    """
    return CausedBy(*types)


def transient(error: Exception) -> bool:
    """Is this a failure of the network that may pass?

    Connection errors, timeouts, temporary failures of name resolution, incomplete HTTP reads, and the
    status codes 408, 425, 429, 500, 502, 503 and 504 in `.code`, `.status`, `.status_code` or
    `.response.status_code`. Looks through the chain of causes; the outermost status found there decides,
    so a 404 that was raised while a broken connection was handled is not transient.
    """
    return through_chain(error, _is_transient)


def disk_trouble(error: Exception) -> bool:
    """Is this, or what it came from, an `OSError` that may pass (EIO, EAGAIN, EBUSY, ESTALE, …)?"""
    return through_chain(error, lambda link: (isinstance(link, OSError) and link.errno in _DISK) or None)


def through_chain(error: BaseException, test: Callable[[BaseException], bool | None]) -> bool:
    """The first answer that `test` gives along the chain of `error`; where it says None, look further."""
    return _through(error, test, {})


def _through(
    error: BaseException, test: Callable[[BaseException], bool | None], known: dict[int, bool]
) -> bool:
    path: list[int] = []
    link: BaseException | None = error
    answer = False
    while link is not None:
        if id(link) in known:  # a cycle, or a part of the chain that another leaf of the group has as well
            answer = known[id(link)]
            break
        known[id(link)] = False
        path.append(id(link))
        verdict = test(link)
        if verdict is None and isinstance(link, BaseExceptionGroup):
            verdict = all([_through(leaf, test, known) for leaf in link.exceptions]) or None
        if verdict is not None:
            answer = verdict
            break
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    known.update(dict.fromkeys(path, answer))
    return answer


def _is_transient(link: BaseException) -> bool | None:
    if isinstance(link, (ConnectionError, TimeoutError)):
        return True
    if isinstance(link, OSError) and (link.errno in _UNREACHABLE or _names_failed(link)):
        return True
    # Whoever raised these has loaded their module; nothing is imported to ask.
    http = sys.modules.get("http.client")
    if http is not None and isinstance(link, http.IncompleteRead):
        return True
    status = _status(link)
    return None if status is None else status in _STATUS


def _names_failed(error: OSError) -> bool:
    """Did the resolver say "try again"?"""
    socket = sys.modules.get("socket")
    return socket is not None and isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN


def _status(error: BaseException) -> int | None:
    """The HTTP status that the error carries under one of the usual names."""
    candidates: list[Any] = [getattr(error, name, None) for name in ("code", "status", "status_code")]
    candidates.append(getattr(getattr(error, "response", None), "status_code", None))
    for value in candidates:
        if isinstance(value, int) and 100 <= value <= 599:
            return value
    return None
