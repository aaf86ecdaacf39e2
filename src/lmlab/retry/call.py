"""The decorator and `call`: one frame more than the plain call, and on success only a `try`."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from lmlab.retry.engine import READY, READY_SLOW, Attempt, rescue

if TYPE_CHECKING:
    from lmlab.retry.policy import Retry

_GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 0x20, 0x80, 0x200  # of `code.co_flags`


def kind(f: Callable[..., Any]) -> str:
    """What calling `f` gives: "plain", "async" (a coroutine) or "rows" (a generator of either sort)."""
    while isinstance(f, functools.partial):
        f = f.func
    f = getattr(f, "__func__", f)
    code = getattr(f, "__code__", None)
    if code is None:
        code = getattr(getattr(type(f), "__call__", None), "__code__", None)  # noqa: B004
    flags = 0 if code is None else code.co_flags
    if flags & (_GENERATOR | _ASYNC_GENERATOR) or getattr(f, "_retries_rows", False):
        return "rows"
    return "async" if flags & _COROUTINE or hasattr(f, "_is_coroutine_mark") else "plain"


def decorate(policy: Retry, f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` under `policy`, with its signature, name and docstring."""
    if isinstance(f, type):
        raise TypeError(
            f"a policy decorates functions and methods, got the class {f.__name__}; "
            "decorate the method that may fail"
        )
    if not callable(f):
        raise TypeError(
            f"a policy decorates functions and methods, got {f!r}"
            + ("; put @io below it" if isinstance(f, (classmethod, property)) else "")
        )
    policy = named(policy, f)
    found = kind(f)
    if found == "rows":
        from lmlab.retry.stream import decorate_rows

        return decorate_rows(policy, f)
    if found == "async":
        wrapper = _asynchronous(policy, f)
    elif policy._timed:
        wrapper = _timed(policy, f)
    else:
        wrapper = _plain(policy, f)
    return functools.wraps(f)(wrapper)


def named(policy: Retry, f: Callable[..., Any]) -> Retry:
    """The policy with the name of the function, unless it has one."""
    if policy.name is not None:
        return policy
    while isinstance(f, functools.partial):
        f = f.func
    return policy._labelled(getattr(f, "__qualname__", None) or type(f).__qualname__)


def _plain(policy: Retry, f: Callable[..., Any]) -> Callable[..., Any]:
    catch = policy._catch
    if policy._begin is None:

        def without_budget(*args: Any, **kwargs: Any) -> Any:
            try:
                return f(*args, **kwargs)
            except catch as error:
                run = rescue(policy, error)
                if run is None:
                    raise
            while True:  # outside the `except`: an error of a later attempt has no context of ours
                with run:
                    return f(*args, **kwargs)

        return without_budget

    ticks = policy._ticks

    def with_budget(*args: Any, **kwargs: Any) -> Any:
        next(ticks)
        try:
            return f(*args, **kwargs)
        except catch as error:
            run = rescue(policy, error)
            if run is None:
                raise
        while True:
            with run:
                return f(*args, **kwargs)

    return with_budget


def _timed(policy: Retry, f: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        run = policy.run()
        while True:
            with run:
                return f(*args, **kwargs)

    return wrapper


def _asynchronous(policy: Retry, f: Callable[..., Any]) -> Callable[..., Any]:
    if policy._timed:

        async def timed(*args: Any, **kwargs: Any) -> Any:
            run = policy.run()
            while True:
                async with run:
                    return await f(*args, **kwargs)

        return timed

    catch = policy._catch
    ticks = policy._ticks

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        next(ticks)
        try:
            if kwargs:
                return await f(*args, **kwargs)
            return await f(*args)  # quicker than passing on an empty dict
        except catch as error:
            run = rescue(policy, error)
            if run is None:
                raise
        while True:
            async with run:
                return await f(*args, **kwargs)

    return wrapper


def start(policy: Retry, quiet: bool = False) -> Attempt:
    """A run in the form of `while True: with run:`."""
    if policy._begin is not None:
        policy._begin()
    run = Attempt(policy, READY_SLOW if policy._timed else READY, False, quiet)
    run._asynchronous = False
    return run


async def acall(run: Attempt, f: Callable[..., Awaitable[Any]], args: Any, kwargs: Any) -> Any:
    """Await `f` under a run that was started."""
    while True:
        async with run:
            return await f(*args, **kwargs)
