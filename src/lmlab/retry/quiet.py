"""Quiet faces: what `on` covers is an outcome, not an exception."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, cast, overload

from lmlab.retry.call import kind, named, start
from lmlab.retry.engine import ENDED, Attempt

if TYPE_CHECKING:
    from lmlab.retry.policy import Retry

P = ParamSpec("P")
T = TypeVar("T")
I = TypeVar("I")  # noqa: E741


class Outcome(Generic[T]):
    """What quiet `call` and `map` give: a value or an error, and what it took to get there."""

    __slots__ = ("attempts", "error", "index", "kills", "ok", "value")

    ok: bool
    value: T | None
    error: Exception | None
    attempts: int
    index: int  # the item's number in `map`, from 0
    kills: int  # workers that died on it

    def __init__(
        self,
        ok: bool,
        value: T | None = None,
        error: Exception | None = None,
        attempts: int = 1,
        index: int = 0,
        kills: int = 0,
    ) -> None:
        for name, field in zip(self.__slots__, (attempts, error, index, kills, ok, value), strict=True):
            object.__setattr__(self, name, field)

    def unwrap(self) -> T:
        """The value, or raises `error`."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)

    def _fields(self) -> tuple[Any, ...]:
        return self.ok, self.value, self.error, self.attempts, self.index, self.kills

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("an Outcome is frozen")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Outcome, self._fields()

    def __repr__(self) -> str:
        result = f"value={self.value!r}" if self.ok else f"error={self.error!r}"
        counts = f"attempts={self.attempts}, index={self.index}, kills={self.kills}"
        return f"Outcome(ok={self.ok}, {result}, {counts})"


class Quiet:
    """A policy whose faces never raise what `on` covers; see `Retry.quiet`."""

    __slots__ = ("_policy",)

    def __init__(self, policy: Retry) -> None:
        self._policy = policy

    def __iter__(self) -> Iterator[Attempt]:
        """After the loop, `attempt.ok` and `attempt.error` tell how it went."""
        policy = self._policy
        if policy._begin is not None:
            policy._begin()
        return Attempt(policy, policy._new, True, True)

    def __aiter__(self) -> AsyncIterator[Attempt]:
        policy = self._policy
        if policy._begin is not None:
            policy._begin()
        return Attempt(policy, policy._new, True, True)

    @overload
    def call(  # type: ignore[overload-overlap]
        self, f: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, Outcome[T]]: ...
    @overload
    def call(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Outcome[T]: ...
    def call(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """An `Outcome` for a value and for what `on` covers; raises the rest. Await it for an async `f`."""
        found = kind(f)
        if found == "rows":
            raise TypeError("quiet call: a generator has no single outcome; use io.stream or decorate it")
        run = start(named(self._policy, f), quiet=True)
        if found == "async":
            return _aoutcome(run, f, args, kwargs)
        while True:
            with run:
                value = f(*args, **kwargs)
            if run.ok:
                return Outcome(True, value, attempts=run.n)
            if run._state == ENDED:
                return Outcome(False, error=run.error, attempts=run.n)

    def map(
        self,
        fn: Callable[[I], T],
        items: Iterable[I],
        *,
        workers: int | None = None,
        kills: int = 3,
        ordered: bool = True,
        context: str | None = None,
    ) -> Iterator[Outcome[T]]:
        """`Retry.map` with every `Exception` put into its outcome (retrying only what `on` covers)."""
        from lmlab.retry.supervise import supervise

        return supervise(self._policy, fn, items, workers, kills, ordered, context, quiet=True)


async def _aoutcome(run: Attempt, f: Callable[..., Awaitable[T]], args: Any, kwargs: Any) -> Outcome[T]:
    while True:
        async with run:
            value = await f(*args, **kwargs)
        if run.ok:
            return Outcome(True, value, attempts=run.n)
        if run._state == ENDED:
            return Outcome(False, error=run.error, attempts=run.n)
