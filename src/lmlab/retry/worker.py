"""What runs in a worker of `map`: one item at a time, out of the pipe and back into it."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from lmlab.retry import clock
from lmlab.retry.deadline import current

# A chain of exceptions as it travels: of each its pickle, and the numbers of its cause and its context.
Link = tuple[bytes, int | None, int | None, bool]


class Closable(Protocol):
    def close(self) -> None: ...


class Opaque(Exception):
    """Stands for an exception that did not survive a round trip through pickle; `on` never covers it."""


def serve(
    pipe: Connection,
    lifeline: Connection,
    inherited: Sequence[Closable],
    fn: Callable[[Any], Any],
    first: tuple[float | None, Any] | None,
) -> None:
    """Answer items until the parent closes the pipe, or ends.

    `inherited`: the parent's ends, which a forked child holds as well. While it does, no worker would see
    the parent's death. `first`: an item that came by the fork, because it can't be pickled.
    """
    for end in inherited:
        end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who ends the workers
    threading.Thread(target=_leave_with_parent, args=(lifeline,), daemon=True).start()
    try:
        if first is None:
            pipe.send_bytes(b"")  # ready
        else:
            pipe.send_bytes(_answer(fn, lambda: first))
        while True:
            message = pipe.recv_bytes()
            pipe.send_bytes(_answer(fn, lambda: pickle.loads(message)))  # noqa: B023 (called at once)
    except (EOFError, OSError):
        return


def _leave_with_parent(lifeline: Connection) -> None:
    """End with the parent, also in the middle of an item, when nobody looks at the pipe."""
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _answer(fn: Callable[[Any], Any], take: Callable[[], tuple[float | None, Any]]) -> bytes:
    """The pickle of (True, value), or of (False, the chain of the error, its traceback as text)."""
    try:
        left, item = take()
        token = current.set(None if left is None else clock.active.read() + left)
        try:
            value = fn(item)
        finally:
            current.reset(token)
        return pickle.dumps((True, value), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        return pickle.dumps((False, pack(error), text), pickle.HIGHEST_PROTOCOL)


def pack(error: BaseException) -> list[Link]:
    """The chain of `error` for the way to the parent: pickle alone drops cause and context."""
    chain: list[BaseException] = [error]
    numbers = {id(error): 0}
    links: list[Link] = []

    def number(other: BaseException | None) -> int | None:
        if other is None:
            return None
        if id(other) not in numbers:
            numbers[id(other)] = len(chain)
            chain.append(other)
        return numbers[id(other)]

    for one in chain:  # grows on the way
        links.append(
            (_pickled(one), number(one.__cause__), number(one.__context__), one.__suppress_context__)
        )
    return links


def _pickled(error: BaseException) -> bytes:
    # Many exceptions with an `__init__` of their own can be pickled and then not be read back.
    try:
        data = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        if type(pickle.loads(data)) is type(error):
            return data
    except Exception:
        pass
    return pickle.dumps(Opaque("".join(traceback.format_exception_only(error)).strip()))


def unpack(links: Sequence[Link]) -> BaseException:
    """The error with its chain, as the parent sees it."""
    chain: list[BaseException] = [pickle.loads(data) for data, *_ in links]
    for error, (_, cause, context, suppress) in zip(chain, links, strict=True):
        error.__cause__ = None if cause is None else chain[cause]
        error.__context__ = None if context is None else chain[context]
        error.__suppress_context__ = suppress
    return chain[0]
