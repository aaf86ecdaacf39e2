"""Streams that go on where they broke: nothing delivered twice, nothing lost."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from lmlab.retry.call import start as start_run
from lmlab.retry.engine import Attempt, rescue

if TYPE_CHECKING:
    from lmlab.retry.policy import Retry

T = TypeVar("T")

_END: Any = object()


class Stream(Generic[T]):
    """The items of `make(cursor)`, made again at the cursor after a failure. An iterator, for one use.

    Also an async iterator, where `make` gives an async iterable. `cursor`: where the next item starts; store
    it in a checkpoint and pass it as `start` to go on later. `close` ends the iterator that is open.
    """

    __slots__ = ("_advance", "_begin", "_catch", "_closed", "_make", "_next", "_opened", "_policy", "cursor")

    cursor: Any
    _next: Callable[[], T] | None  # of the open iterator; async: gives an awaitable
    _opened: tuple[Any, ...]  # what must be closed

    def __init__(
        self,
        policy: Retry,
        make: Callable[[Any], Iterable[T] | AsyncIterable[T]],
        start: Any = 0,
        cursor: Callable[[T], Any] | None = None,
    ) -> None:
        if not callable(make):
            raise TypeError(
                f"make: expected a function of the cursor, got {make!r}. Right: io.stream(open_at)"
            )
        if cursor is None and (isinstance(start, bool) or not isinstance(start, int)):
            raise TypeError(
                f"start: expected an integer, the number of items before the first, got {start!r}; "
                "for other cursors pass cursor=function_of_an_item"
            )
        self.cursor = start
        self._policy = policy
        self._make = make
        self._advance = cursor
        self._next = None
        self._opened = ()
        self._closed = False
        self._begin = policy._begin
        self._catch = policy._catch

    # Synchronous

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        following = self._next
        if following is None or self._policy._timed:
            return self._attempt(None)
        if self._begin is not None:
            self._begin()
        try:
            item = following()
        except StopIteration:
            self.close()
            raise
        except self._catch as error:
            run = rescue(self._policy, error)
            if run is None:
                self._fail()
                raise
        except BaseException:
            self._fail()
            raise
        else:
            self.cursor = self.cursor + 1 if self._advance is None else self._advance(item)
            return item
        self._drop()
        return self._attempt(run)

    def _attempt(self, run: Attempt | None) -> T:
        """The next item by way of a run: the first of all, after a failure, or under a deadline."""
        if self._closed:
            raise StopIteration
        if run is None:
            run = start_run(self._policy)
        try:
            while True:
                with run:
                    if self._next is None:
                        self._open()
                    item = self._following()
                    break
                self._drop()  # the failed iterator is closed before the next is made
        except BaseException:
            self._fail()
            raise
        if item is _END:
            self.close()
            raise StopIteration
        self.cursor = self.cursor + 1 if self._advance is None else self._advance(item)
        return item

    def _open(self) -> None:
        rows = self._make(self.cursor)
        if not isinstance(rows, Iterable):
            raise TypeError(
                f"make: expected a function that gives an iterable, got {type(rows).__name__}"
                + ("; go through it with `async for`" if isinstance(rows, AsyncIterable) else "")
            )
        iterator = iter(rows)
        self._opened = (iterator,) if iterator is rows else (iterator, rows)
        self._next = iterator.__next__

    def _following(self) -> T:
        assert self._next is not None
        try:
            return self._next()
        except StopIteration:
            return cast(T, _END)

    def _drop(self) -> None:
        """Close what failed; that a broken connection can't be closed well is no news."""
        opened, self._opened, self._next = self._opened, (), None
        for one in opened:
            with contextlib.suppress(Exception):
                _close(one)

    def _fail(self) -> None:
        self._closed = True
        self._drop()

    def close(self) -> None:
        """Close the open iterator and end the stream."""
        self._closed = True
        opened, self._opened, self._next = self._opened, (), None
        for one in opened:
            _close(one)

    # Asynchronous

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        following: Any = self._next
        if following is None or self._policy._timed:
            return await self._aattempt(None)
        if self._begin is not None:
            self._begin()
        try:
            item: T = await following()
        except StopAsyncIteration:
            await self.aclose()
            raise
        except self._catch as error:
            run = rescue(self._policy, error)
            if run is None:
                await self._afail()
                raise
        except BaseException:
            await self._afail()
            raise
        else:
            self.cursor = self.cursor + 1 if self._advance is None else self._advance(item)
            return item
        await self._adrop()
        return await self._aattempt(run)

    async def _aattempt(self, run: Attempt | None) -> T:
        if self._closed:
            raise StopAsyncIteration
        if run is None:
            run = start_run(self._policy)
        try:
            while True:
                async with run:
                    if self._next is None:
                        self._aopen()
                    item = await self._afollowing()
                    break
                await self._adrop()
        except BaseException:
            await self._afail()
            raise
        if item is _END:
            await self.aclose()
            raise StopAsyncIteration
        self.cursor = self.cursor + 1 if self._advance is None else self._advance(item)
        return item

    def _aopen(self) -> None:
        rows = self._make(self.cursor)
        if not isinstance(rows, AsyncIterable):
            raise TypeError(
                f"make: expected a function that gives an async iterable, got {type(rows).__name__}"
                + ("; go through it with a plain `for`" if isinstance(rows, Iterable) else "")
            )
        iterator = aiter(rows)
        self._opened = (iterator,) if iterator is rows else (iterator, rows)
        self._next = cast(Any, iterator.__anext__)

    async def _afollowing(self) -> T:
        following: Any = self._next
        try:
            return cast(T, await following())
        except StopAsyncIteration:
            return cast(T, _END)

    async def _adrop(self) -> None:
        opened, self._opened, self._next = self._opened, (), None
        for one in opened:
            with contextlib.suppress(Exception):
                await _aclose(one)

    async def _afail(self) -> None:
        self._closed = True
        await self._adrop()

    async def aclose(self) -> None:
        """Close the open async iterator and end the stream."""
        self._closed = True
        opened, self._opened, self._next = self._opened, (), None
        for one in opened:
            await _aclose(one)


def _close(one: object) -> None:
    close = getattr(one, "close", None)
    if callable(close):
        close()
    elif hasattr(one, "aclose"):
        raise RuntimeError("an asynchronous stream is closed by `await stream.aclose()`")


async def _aclose(one: object) -> None:
    aclose = getattr(one, "aclose", None)
    if callable(aclose):
        await aclose()
    else:
        _close(one)


def decorate_rows(policy: Retry, f: Callable[..., Any]) -> Callable[..., Stream[Any]]:
    """A generator function under `policy`: its calls give streams, through its parameter `cursor`."""
    import inspect

    signature = inspect.signature(f)
    name = getattr(f, "__name__", repr(f))
    parameter = signature.parameters.get("cursor")
    if parameter is None or parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
        raise TypeError(
            f"a generator under a policy must take `cursor`, the number of items to leave out; "
            f"{name}{signature} does not. Right: def rows(path, *, cursor=0)"
        )
    default = 0 if parameter.default is parameter.empty else parameter.default
    if isinstance(default, bool) or not isinstance(default, int):
        raise TypeError(
            f"cursor: expected an integer default, got {default!r}. Right: def rows(path, *, cursor=0)"
        )

    @functools.wraps(f)
    def wrapper(*args: Any, **kwargs: Any) -> Stream[Any]:
        bound = signature.bind_partial(*args, **kwargs)
        begun = bound.arguments.setdefault("cursor", default)
        signature.bind(*bound.args, **bound.kwargs)  # the arguments are checked here, not at the first item

        def rows(cursor: int) -> Any:
            bound.arguments["cursor"] = cursor
            return f(*bound.args, **bound.kwargs)

        return Stream(policy, rows, begun)

    wrapper._retries_rows = True  # type: ignore[attr-defined]
    return wrapper
