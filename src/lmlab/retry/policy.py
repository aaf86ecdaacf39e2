"""`Retry`: the policy and its faces. It holds no state of a run."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from itertools import repeat
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, overload

from lmlab.retry.budget import Budget
from lmlab.retry.call import acall, decorate, kind, named, start
from lmlab.retry.engine import NEW, NEW_TIMED, Attempt
from lmlab.retry.events import Event, log
from lmlab.retry.match import Rejected, disk_trouble, transient
from lmlab.retry.wait import backoff, number

if TYPE_CHECKING:
    from lmlab.retry.quiet import Quiet
    from lmlab.retry.stream import Stream

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")
I = TypeVar("I")  # noqa: E741
F = TypeVar("F", bound=Callable[..., Any])

On = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
Wait = float | Callable[[int, Exception], float]

_FIELDS = ("on", "attempts", "within", "each", "wait", "budget", "hooks", "name")


class Retry:
    """When to try again: an immutable value that can be shared by threads, tasks and processes.

    `on`: which errors are retried: an exception class, a tuple of them, or a predicate. `attempts`: attempts
    in all, the first included; None: no limit but `within`. `within`: seconds for the whole run; no attempt
    starts after it (a synchronous attempt that runs is not interrupted). `each`: seconds for one attempt.
    `wait`: seconds between attempts, or a function of (attempt, error). `budget`: a `Budget` that all runs of
    this policy share. `hooks`: called with an `Event` at each retry, late success and giving up. `name`: what
    events are called.

    At the end it re-raises the very error of the last attempt, with one note. After Su Jianlin,
    https://kexue.fm/archives/9938.
    """

    __slots__ = (*_FIELDS, "_begin", "_catch", "_classes", "_label", "_new", "_predicate", "_ticks", "_timed")

    on: On
    attempts: int | None
    within: float | None
    each: float | None
    wait: Wait
    budget: Budget | None
    hooks: tuple[Callable[[Event], None], ...]
    name: str | None
    # For the engine:
    _classes: tuple[type[Exception], ...]
    _new: int  # the state in which a loop starts
    _predicate: Callable[[Exception], bool] | None
    _catch: type[Exception] | tuple[type[Exception], ...]  # all that may be retried
    _begin: Callable[[], object] | None  # counts a call in the budget
    _ticks: Iterator[object]  # `next` does what `_begin` does, in less time than the call of a bound method
    _timed: bool  # has deadlines of its own
    _label: str

    def __init__(
        self,
        on: On,
        *,
        attempts: int | None = 5,
        within: float | None = None,
        each: float | None = None,
        wait: Wait = backoff(),
        budget: Budget | None = None,
        hooks: tuple[Callable[[Event], None], ...] = (log,),
        name: str | None = None,
    ) -> None:
        classes = _classes(on)
        _check_attempts(attempts, within)
        for field, seconds in (("within", within), ("each", each)):
            if seconds is not None and number(field, seconds) == 0:
                raise ValueError(f"{field}: expected more than 0 seconds, got {seconds!r}; None is no limit")
        if not callable(wait):
            number("wait", wait)
        if budget is not None and not isinstance(budget, Budget):
            raise TypeError(f"budget: expected a Budget or None, got {budget!r}. Right: budget=Budget(0.1)")
        hooks = tuple(hooks)
        for hook in hooks:
            if not callable(hook):
                raise TypeError(f"hooks: expected functions of an Event, got {hook!r}. Right: hooks=(log,)")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected a string, got {name!r}")
        set_ = object.__setattr__
        values = (on, attempts, within, each, wait, budget, hooks, name)
        for field, value in zip(_FIELDS, values, strict=True):
            set_(self, field, value)
        set_(self, "_classes", classes)
        set_(self, "_predicate", None if classes else on)
        set_(self, "_catch", (*classes, Rejected) if classes else Exception)
        # A budget of the user's own class keeps its own `begin`.
        quick = budget is not None and type(budget).begin is Budget.begin
        set_(self, "_begin", None if budget is None else budget._tick if quick else budget.begin)
        ticks = repeat(None) if budget is None else budget._begun.ticks if quick else iter(budget.begin, self)
        set_(self, "_ticks", ticks)
        set_(self, "_timed", within is not None or each is not None)
        set_(self, "_new", NEW_TIMED if self._timed else NEW)
        set_(self, "_label", name or "block")

    # A value

    def replace(self, **changes: Any) -> Retry:
        """A policy with some fields changed; it shares the budget unless that is what is changed."""
        unknown = sorted(set(changes) - set(_FIELDS))
        if unknown:
            raise TypeError(f"replace: unknown field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}")
        return type(self)(**{field: getattr(self, field) for field in _FIELDS} | changes)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Retry is immutable; make another: io.replace({name}={value!r})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Retry is immutable; make another by io.replace(...)")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field) for field in _FIELDS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Retry) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __copy__(self) -> Retry:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Retry:
        return self

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _restored, (type(self), self._values())

    def __repr__(self) -> str:
        on = self.on
        if isinstance(on, tuple):
            shown = f"({', '.join(one.__name__ for one in on)})"
        else:
            shown = getattr(on, "__name__", None) or repr(on)
        return (
            f"Retry({shown}, " + ", ".join(f"{field}={getattr(self, field)!r}" for field in _FIELDS[1:]) + ")"
        )

    # The engine's questions

    def _covers(self, error: Exception) -> bool:
        """Is `error` retryable?"""
        if isinstance(error, Rejected) and not error.spent:
            return True
        if self._predicate is None:
            return isinstance(error, self._classes)
        return bool(self._predicate(error))

    def _waits(self, n: int, error: Exception) -> float:
        """Seconds to wait after failure `n`."""
        if not callable(self.wait):
            return self.wait
        return number("wait(n, error)", self.wait(n, error))

    def _labelled(self, label: str) -> Retry:
        """The same policy, called `label` in events."""
        other = object.__new__(type(self))
        for field in self.__slots__:
            object.__setattr__(other, field, getattr(self, field))
        object.__setattr__(other, "_label", label)
        return other

    # Faces

    def __iter__(self) -> Iterator[Attempt]:
        """`for attempt in io: with attempt: ...`; raises the original error at the end."""
        if self._begin is not None:
            self._begin()
        return Attempt(self, self._new, True, False)

    def __aiter__(self) -> AsyncIterator[Attempt]:
        """`async for attempt in io: with attempt: ...`."""
        if self._begin is not None:
            self._begin()
        return Attempt(self, self._new, True, False)

    def run(self) -> Attempt:
        """`run = io.run()`, then `while True: with run: return ...`: the form that type checkers accept."""
        return start(self)

    def quiet(self) -> Quiet:
        """The same policy in faces that never raise what `on` covers."""
        from lmlab.retry.quiet import Quiet

        return Quiet(self)

    @overload
    def __call__(self, f: Callable[P, Generator[T, Any, Any]]) -> Callable[P, Stream[T]]: ...
    @overload
    def __call__(self, f: Callable[P, AsyncGenerator[T, Any]]) -> Callable[P, Stream[T]]: ...
    @overload
    def __call__(self, f: F) -> F: ...
    def __call__(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function, coroutine function, method or generator (which must take a `cursor`)."""
        return decorate(self, f)

    def call(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`f(*args, **kwargs)` under this policy; with an async `f`, await the result."""
        found = kind(f)
        if found == "rows":
            return decorate(self, f)(*args, **kwargs)  # type: ignore[no-any-return]
        run = start(named(self, f))
        if found == "async":
            return acall(run, f, args, kwargs)  # type: ignore
        while True:
            with run:
                return f(*args, **kwargs)

    @overload
    def stream(self, make: Callable[[int], Iterable[T] | AsyncIterable[T]], start: int = 0) -> Stream[T]: ...
    @overload
    def stream(
        self, make: Callable[[C], Iterable[T] | AsyncIterable[T]], start: C, *, cursor: Callable[[T], C]
    ) -> Stream[T]: ...
    def stream(self, make: Callable[..., Any], start: Any = 0, *, cursor: Any = None) -> Stream[Any]:
        """Items of `make(start)`; after a failure of `make(c)`, c being where the next item starts.

        c counts delivered items from `start`, or is `cursor(item)` of the last one. Nothing is delivered
        twice and nothing is lost, if `make(c)` begins exactly there. `attempts` and `within` count since the
        last delivered item.
        """
        from lmlab.retry.stream import Stream

        return Stream(self, make, start, cursor)

    def map(
        self,
        fn: Callable[[I], T],
        items: Iterable[I],
        *,
        workers: int | None = None,
        kills: int = 3,
        ordered: bool = True,
        context: str | None = None,
    ) -> Iterator[T]:
        """`fn` of each item in worker processes; a killed worker costs its item one more run.

        Yields in the order of the items, or with `ordered=False` as they are done; pulls items lazily, at
        most 4 `workers` ahead (None: the CPUs that this process may use). An item on which `kills` workers
        died raises `WorkerKilled` at its turn. `context`: a start method of `multiprocessing`; `fn` and items
        must be picklable unless it is "fork". Leaving the iterator ends the workers.
        """
        from lmlab.retry.supervise import supervise

        return supervise(self, fn, items, workers, kills, ordered, context, quiet=False)


def _restored(cls: type[Retry], values: tuple[Any, ...]) -> Retry:
    return cls(**dict(zip(_FIELDS, values, strict=True)))


def _classes(on: object) -> tuple[type[Exception], ...]:
    """The classes that `on` names; none where it is a predicate."""
    several = on if isinstance(on, tuple) else (on,)
    wrong: object = None
    for one in several:
        if not (isinstance(one, type) and issubclass(one, Exception)):
            wrong = one
            break
    else:
        if several:
            return several
    if callable(on) and not isinstance(on, (type, BaseException)):
        return ()
    if not several:
        given = "an empty tuple"
    elif isinstance(wrong, type):
        given = f"{wrong.__name__}, which is not an Exception" + (
            " and is never retried" if issubclass(wrong, BaseException) else ""
        )
    else:
        given = repr(wrong)
    raise TypeError(
        f"on: expected an exception class, a tuple of them or a predicate, got {given}. "
        "Right: Retry(ConnectionError), Retry((OSError, TimeoutError)), Retry(caused_by(OSError))"
    )


def _check_attempts(attempts: object, within: object) -> None:
    if attempts is None:
        if within is None:
            raise ValueError("attempts: None needs within=SECONDS, else the policy would retry for ever")
    elif isinstance(attempts, bool) or not isinstance(attempts, int):
        raise TypeError(
            f"attempts: expected an integer >= 1, the first attempt included, or None, got {attempts!r}"
        )
    elif attempts < 1:
        raise ValueError(f"attempts: expected at least 1, the first attempt included, got {attempts}")


def network(**changes: Any) -> Retry:
    """A policy for calls to a server: `transient` errors, backoff up to 20 s, and a budget of its own.

    Each call makes a new policy with a new budget: make one for a server and share it.
    """
    fields: dict[str, Any] = {
        "on": transient,
        "attempts": 6,
        "within": 120,
        "wait": backoff(0.25, cap=20),
        "budget": Budget(0.1, 10),
        "name": "network",
    }
    return _preset("network", fields, changes)


def disk(**changes: Any) -> Retry:
    """A policy for shared disks: `OSError` with a transient errno, looked for through the chain of causes."""
    fields: dict[str, Any] = {"on": disk_trouble, "attempts": 4, "within": 30, "name": "disk"}
    return _preset("disk", fields, changes)


def _preset(preset: str, fields: dict[str, Any], changes: dict[str, Any]) -> Retry:
    unknown = sorted(set(changes) - set(_FIELDS))
    if unknown:
        raise TypeError(f"{preset}: unknown field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}")
    return Retry(**fields | changes)
