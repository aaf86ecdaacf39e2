"""The policy as a value, and every bad input with the text of its error."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lmlab.retry import (
    Budget,
    Counters,
    Outcome,
    Rejected,
    Retry,
    backoff,
    caused_by,
    disk,
    log,
    network,
    transient,
)
from lmlab.retry.testing import testing

bad_input = pytest.mark.bad_input


def wait_two(n: int, error: Exception) -> float:
    return 2.0


def fail() -> None:
    raise ConnectionError("no")


def test_a_policy_is_a_value() -> None:
    io = Retry((OSError, TimeoutError), attempts=3, within=9, each=2, wait=wait_two, name="x")
    again = Retry((OSError, TimeoutError), attempts=3, within=9, each=2, wait=wait_two, name="x")
    assert io == again and hash(io) == hash(again) and io != io.replace(attempts=4)
    assert pickle.loads(pickle.dumps(io)) == io
    assert Retry(OSError) == Retry(OSError)
    assert Retry(caused_by(OSError)) == pickle.loads(pickle.dumps(Retry(caused_by(OSError))))
    assert "attempts=3" in repr(io) and "OSError, TimeoutError" in repr(io)
    assert backoff(1) == backoff(1.0) != backoff(2) and hash(backoff(1)) == hash(backoff(1))


def test_a_copy_shares_the_budget_and_a_pickle_does_not() -> None:
    budget = Budget(0.25, 3)
    io = Retry(OSError, budget=budget)
    for other in (copy.copy(io), copy.deepcopy(io), io.replace(attempts=2)):
        assert other.budget is budget
    budget.begin()
    budget.spend()
    fresh = pickle.loads(pickle.dumps(io)).budget
    assert (fresh.ratio, fresh.burst, fresh.calls, fresh.retries) == (0.25, 3, 0, 0)
    assert copy.deepcopy(budget) is budget and copy.copy(budget) is budget


def test_presets() -> None:
    net = network()
    assert (net.on, net.attempts, net.within, net.name) == (transient, 6, 120, "network")
    assert net.wait == backoff(0.25, cap=20) and net.budget is not None and net.budget is not network().budget
    assert (net.budget.ratio, net.budget.burst) == (0.1, 10)
    local = disk()
    assert (local.attempts, local.within, local.budget, local.name) == (4, 30, None, "disk")
    assert network(attempts=2, budget=None).attempts == 2
    assert pickle.loads(pickle.dumps(net)).on is transient
    with testing() as clock:
        calls = []

        @local
        def save() -> None:
            calls.append(1)
            try:
                raise OSError(5, "I/O error")
            except OSError:
                raise RuntimeError("what torch.save makes of it")  # noqa: B904

        with pytest.raises(RuntimeError, match="torch"):
            save()
        assert len(calls) == 4 and len(clock.sleeps) == 3
    with pytest.raises(TypeError, match="network: unknown field 'attemps'"):
        network(attemps=3)


@bad_input
@pytest.mark.parametrize(
    ("on", "text"),
    [
        (BaseException, "BaseException, which is not an Exception"),
        (KeyboardInterrupt, "KeyboardInterrupt, which is not an Exception and is never retried"),
        ((OSError, SystemExit), "SystemExit"),
        ((), "empty tuple"),
        (ValueError("x"), r"ValueError\('x'\)"),
        (int, "int, which is not an Exception"),
        (None, "None"),
        ("OSError", "'OSError'"),
        ((OSError, fail), "function fail"),
    ],
)
def test_on_names_exceptions(on: Any, text: str) -> None:
    with pytest.raises(TypeError, match=f"on: expected an exception class.*{text}.*Right: Retry"):
        Retry(on)


@bad_input
@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"attempts": 0}, ValueError, "attempts: expected at least 1"),
        ({"attempts": True}, TypeError, "attempts: expected an integer"),
        ({"attempts": 2.0}, TypeError, "attempts: expected an integer"),
        ({"attempts": None}, ValueError, "for ever"),
        ({"within": -1}, ValueError, "within: expected a finite number"),
        ({"within": 0}, ValueError, "within: expected more than 0"),
        ({"within": math.inf}, ValueError, "within"),
        ({"within": math.nan}, ValueError, "within"),
        ({"within": "1"}, TypeError, "within"),
        ({"each": 0}, ValueError, "each: expected more than 0"),
        ({"each": math.inf}, ValueError, "each"),
        ({"wait": -0.1}, ValueError, "wait"),
        ({"wait": math.nan}, ValueError, "wait"),
        ({"wait": None}, TypeError, "wait"),
        ({"budget": 0.1}, TypeError, r"Right: budget=Budget\(0.1\)"),
        ({"hooks": (3,)}, TypeError, "hooks: expected functions"),
        ({"name": 3}, TypeError, "name: expected a string"),
    ],
)
def test_fields_are_checked(kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Retry(OSError, **kwargs)


@bad_input
def test_policies_do_not_change() -> None:
    io = Retry(OSError)
    with pytest.raises(AttributeError, match=r"io.replace\(attempts=3\)"):
        io.attempts = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del io.attempts  # type: ignore[misc]
    with pytest.raises(TypeError, match="unknown field 'retries'; the fields are on, attempts"):
        io.replace(retries=3)
    with pytest.raises(TypeError):
        Retry()  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="frozen"):
        Outcome(True).ok = False  # type: ignore[misc]
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(Retry(lambda e: True))


@bad_input
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_a_wait_function_gives_seconds(value: float) -> None:
    for io in (
        Retry(ConnectionError, wait=lambda n, e: value),
        Retry(ConnectionError, wait=lambda n, e: value, within=9),
    ):
        for face in (io.call, lambda f, io=io: io(f)()):
            with pytest.raises(ValueError, match=r"wait\(n, error\)") as caught:
                face(fail)
            assert isinstance(caught.value.__context__, ConnectionError)
    with pytest.raises(TypeError, match="seconds, got None"):
        Retry(ConnectionError, wait=lambda n, e: None).call(fail)  # type: ignore[arg-type, return-value]


def test_an_error_of_the_predicate_comes_out_with_its_context() -> None:
    def predicate(error: Exception) -> bool:
        raise LookupError("mine")

    io = Retry(predicate)
    for face in (io.call, lambda f: io(f)(), io.quiet().call):
        with pytest.raises(LookupError, match="mine") as caught:
            face(fail)
        assert isinstance(caught.value.__context__, ConnectionError)


@bad_input
@pytest.mark.parametrize(("numbers", "error"), [((-1, 1), ValueError), ((0.1, math.inf), ValueError)])
def test_budget_numbers(numbers: tuple[float, float], error: type[Exception]) -> None:
    with pytest.raises(error, match="expected a finite number >= 0"):
        Budget(*numbers)
    with pytest.raises(TypeError, match="ratio"):
        Budget("0.1")  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="read-only"):
        Budget().ratio = 1


@bad_input
def test_a_loop_needs_its_block() -> None:
    io = Retry(OSError)
    with pytest.raises(RuntimeError, match="put the body inside `with attempt:`"):
        for _ in io:
            pass
    with pytest.raises(RuntimeError, match="stands once"):
        for attempt in io:
            with attempt:
                pass
            with attempt:
                pass
    with testing(), pytest.raises(RuntimeError, match="stands once"):
        for attempt in io:
            with attempt:
                raise OSError
            with attempt:
                pass
    run = io.run()
    with run:
        pass
    with pytest.raises(RuntimeError, match="leave `while True: with run:` by `break` or `return`"), run:
        pass

    async def without() -> None:
        async for _ in io:
            pass

    with pytest.raises(RuntimeError, match="put the body inside"):
        asyncio.run(without())


@bad_input
def test_what_can_be_decorated() -> None:
    io: Any = Retry(OSError)

    def rows() -> Iterator[int]:
        yield 1

    def positional(cursor: int, /) -> Iterator[int]:
        yield 1

    def text(cursor: str = "a") -> Iterator[int]:
        yield 1

    for f in (rows, positional):
        with pytest.raises(TypeError, match=r"def rows\(path, \*, cursor=0\)"):
            io(f)
    with pytest.raises(TypeError, match="cursor: expected an integer default"):
        io(text)
    with pytest.raises(TypeError, match="got the class Thing"):

        @io
        class Thing:
            pass

    with pytest.raises(TypeError, match="functions and methods, got 3"):
        io(3)
    with pytest.raises(TypeError, match="put @io below it"):

        class Other:
            @io
            @classmethod
            def f(cls) -> None: ...

    with pytest.raises(TypeError, match="no single outcome"):
        io.quiet().call(rows)
    with pytest.raises(TypeError, match="make: expected a function of the cursor"):
        io.stream([1, 2])
    with pytest.raises(TypeError, match="start: expected an integer"):
        io.stream(lambda c: [], start="a")


def test_methods_and_names() -> None:
    events: list[Any] = []
    io = Retry(ConnectionError, attempts=2, hooks=(events.append,))

    class Client:
        tries = 0

        @io
        def get(self, x: int = 1) -> int:
            """Doc."""
            self.tries += 1
            if self.tries == 1:
                raise ConnectionError
            return x

        @classmethod
        @io
        def of(cls, x: int) -> int:
            return x

        @staticmethod
        @io
        def plain(x: int) -> int:
            return x

    with testing():
        client = Client()
        assert client.get(x=4) == 4 and client.tries == 2
        assert Client.of(2) == Client.plain(2) == 2
        assert Client.get.__doc__ == "Doc." and Client.get.__name__ == "get"
        assert events[0].name.endswith("Client.get")
        events.clear()
        with pytest.raises(ConnectionError):
            io.call(fail)
        assert events[-1].name == "fail"
        with pytest.raises(ConnectionError):
            io.replace(name="mine").call(fail)
        assert events[-1].name == "mine"
        with pytest.raises(ConnectionError):
            for attempt in io:
                with attempt:
                    fail()
        assert events[-1].name == "block"


def test_functions_share_no_state_when_they_recurse() -> None:
    seen: list[int] = []

    @Retry(ConnectionError, attempts=2)
    def walk(depth: int) -> int:
        seen.append(depth)
        if depth and seen.count(depth) == 1:
            raise ConnectionError
        return 0 if depth == 0 else walk(depth - 1) + 1

    with testing() as clock:
        assert walk(5) == 5
    assert len(clock.sleeps) == 5


def test_rejected_belongs_to_the_innermost_policy() -> None:
    tries: list[int] = []

    def answer() -> None:
        tries.append(1)
        raise Rejected("empty answer", after=3)

    inner = Retry(ConnectionError, attempts=2, wait=backoff(0.5))
    with testing() as clock:
        with pytest.raises(Rejected, match="empty answer"):
            Retry(ConnectionError, attempts=5).call(inner.call, answer)
        assert len(tries) == 2 and clock.sleeps == [3.5]
        tries.clear()
        with pytest.raises(Rejected):
            Retry(Rejected, attempts=3).call(inner.call, answer)
        assert len(tries) == 6
        assert str(Rejected()) == "the result was rejected"


def test_counters_and_hooks(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters()

    def broken(event: Any) -> None:
        raise KeyError("hook")

    io = Retry(ConnectionError, attempts=3, hooks=(log, broken, counters), name="n", wait=0.5)
    left = [2]

    def f() -> None:
        if left[0]:
            left[0] -= 1
            raise ConnectionError("reset")

    with testing(), caplog.at_level("INFO", "lmlab.retry"):
        io.call(f)
        with pytest.raises(ConnectionError):
            io.call(fail)
    assert counters.retries == {"n": 4} and counters.recovered == {"n": 1} and counters.gave_up == {"n": 1}
    assert counters.slept == {"n": 2.0}
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if "passed over" not in r.getMessage()]
    assert lines[:3] == [
        ("WARNING", "n: attempt 1 failed (ConnectionError: reset), next in 0.5 s"),
        ("WARNING", "n: attempt 2 failed (ConnectionError: reset), next in 0.5 s"),
        ("INFO", "n: recovered at attempt 3 after 1.0 s"),
    ]
    assert lines[-1] == ("WARNING", "n: gave up after 3 attempts in 1.0 s (attempts): ConnectionError: no")
    assert sum("passed over" in r.getMessage() for r in caplog.records) == 6
    assert pickle.loads(pickle.dumps(counters)).retries == {}


def test_an_old_note_is_replaced() -> None:
    error = ConnectionError("the same")
    error.add_note("of the user")

    def same() -> None:
        raise error

    with testing():
        for n in (3, 4):
            with pytest.raises(ConnectionError):
                Retry(ConnectionError, attempts=n).call(same)
    assert error.__notes__[0] == "of the user"
    assert [note for note in error.__notes__ if "retry" in note] == [
        "retry: gave up after 4 attempts in 0.7 s (attempts)"
    ]


def test_first_success_fires_nothing_and_testing_nests() -> None:
    events: list[Any] = []
    io = Retry(ConnectionError, hooks=(events.append,), wait=1)
    with testing(attempts=2) as outer:
        assert io.call(int) == 0 and not events
        outer.advance(5)
        with testing(attempts=1) as inner:
            assert inner.now == 5
            with pytest.raises(ConnectionError):
                io.call(fail)
            assert inner.sleeps == []
        with pytest.raises(ConnectionError):
            io.call(fail)
        assert outer.sleeps == [1.0] and outer.now == 6
    with testing(attempts=2), pytest.raises(ConnectionError):
        Retry(ConnectionError, attempts=None, within=9).call(fail)


def test_outcomes() -> None:
    io = Retry(ConnectionError, attempts=2)
    with testing():
        outcome = io.quiet().call(fail)
        assert not outcome.ok and outcome.attempts == 2 and outcome.value is None
        with pytest.raises(ConnectionError):
            outcome.unwrap()
        with pytest.raises(ZeroDivisionError):
            io.quiet().call(lambda: 1 // 0)
    good = io.quiet().call(int, "3")
    assert good == Outcome(True, 3) and good.unwrap() == 3 and hash(good) == hash(Outcome(True, 3))
    assert pickle.loads(pickle.dumps(good)) == good and "value=3" in repr(good)


def test_partial_and_callable_objects() -> None:
    import functools

    class Async:
        async def __call__(self, x: int) -> int:
            return x

    class Plain:
        def __call__(self, x: int) -> int:
            return x

    async def f(x: int, y: int) -> int:
        return x + y

    io = Retry(ConnectionError)
    decorated: Callable[..., Any] = io(functools.partial(f, 1))
    assert asyncio.run(decorated(2)) == 3
    assert asyncio.run(io(Async())(2)) == 2 and io(Plain())(2) == 2
