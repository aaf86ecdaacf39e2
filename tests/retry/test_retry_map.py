"""`map`: killed workers, poison, order, laziness; and nothing left: no process, no zombie, no pipe."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlab.retry import Budget, Rejected, Retry, WorkerKilled, caused_by, remaining
from lmlab.retry.testing import testing

IO = Retry(ConnectionError, attempts=3, wait=0, hooks=())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every test ends without a new child, alive or dead, and with as many descriptors as before."""
    gc.collect()
    before, family, workers = descriptors(), children(), set(multiprocessing.active_children())
    yield
    gc.collect()
    assert set(multiprocessing.active_children()) <= workers
    assert children() <= family  # a zombie would be found here; another test's helpers may live on
    assert descriptors() == before


def children() -> set[int]:
    """The processes that this one has started and not reaped, zombies too, where the system tells."""
    found = Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in found for pid in path.read_text().split()}


def descriptors() -> int:
    """Open descriptors of this process, where the system tells."""
    return len(list(Path("/proc/self/fd").glob("*")))


def mark(folder: str, name: object) -> int:
    """Note one more run under `name`, across processes; how many there were before."""
    path = f"{folder}/{name}"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b".")
    before = os.fstat(descriptor).st_size - 1
    os.close(descriptor)
    return before


def runs(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def square(x: int) -> int:
    return x * x


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killed:
    """Squares its item; on the first run of some items, the worker kills itself."""

    def __init__(self, folder: Path, victims: set[int], always: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.folder, self.victims, self.always = str(folder), victims, always

    def __call__(self, x: int) -> int:
        before = mark(self.folder, x)
        if x in self.always or (x in self.victims and before == 0):
            die()
        return x * x


@pytest.mark.parametrize("ordered", [True, False])
def test_killed_workers_cost_one_run_each(tmp_path: Path, ordered: bool) -> None:
    n = 300
    victims = set(random.Random(4).sample(range(n), n // 100))
    got = list(IO.map(Killed(tmp_path, victims), range(n), workers=2, ordered=ordered, context="fork"))
    assert (got if ordered else sorted(got)) == [x * x for x in range(n)]
    assert runs(tmp_path) == n + len(victims)


def test_poison_is_isolated_after_its_kills(tmp_path: Path) -> None:
    events: list[Any] = []
    io = IO.replace(hooks=(events.append,), budget=Budget(0, 0))
    fn = Killed(tmp_path, {2}, always={5})
    outcomes = list(io.quiet().map(fn, range(10), workers=2, kills=4, context="fork"))
    assert [outcome.value for outcome in outcomes if outcome.ok] == [x * x for x in range(10) if x != 5]
    bad = outcomes[5]
    assert isinstance(bad.error, WorkerKilled) and (bad.index, bad.kills, bad.attempts) == (5, 4, 1)
    assert (bad.error.index, bad.error.kills, bad.error.exitcode) == (5, 4, -signal.SIGKILL)
    assert str(bad.error) == "item 5 killed 4 workers (last exit code -9)"
    assert "(kills)" in bad.error.__notes__[0]
    assert outcomes[2].kills == 1 and outcomes[2].attempts == 1
    assert (tmp_path / "5").stat().st_size == 4
    assert [(event.kind, event.reason) for event in events] == [("gave-up", "kills")]
    assert io.budget is not None and (io.budget.calls, io.budget.retries) == (10, 0)  # deaths spend nothing
    assert pickle.loads(pickle.dumps(bad.error)).kills == 4


def test_poison_is_raised_at_its_turn(tmp_path: Path) -> None:
    results = IO.map(Killed(tmp_path, set(), {3}), range(100), workers=2, kills=2, context="fork")
    got = []
    with pytest.raises(WorkerKilled, match="item 3"):
        for value in results:
            got.append(value)
    assert got == [0, 1, 4] and list(results) == []


# Exceptions on their way to the parent


class Strange(Exception):
    """Can be pickled, and then not be read back."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} {b}")


class Touchy(Exception):
    pass


class Fails:
    def __init__(self, folder: Path, kind: str, times: int) -> None:
        self.folder, self.kind, self.times = str(folder), kind, times

    def __call__(self, x: int) -> Any:
        if mark(self.folder, x) >= self.times:
            return x
        if self.kind == "chain":
            try:
                raise OSError(5, "I/O error")
            except OSError:
                raise RuntimeError("wrapped")  # noqa: B904
        if self.kind == "cause":
            raise RuntimeError("wrapped") from OSError(5, "I/O error")
        if self.kind == "strange":
            raise Strange(1, 2)
        if self.kind == "strange cause":
            raise ConnectionError("plain") from Strange(1, 2)
        if self.kind == "unpicklable":
            return lambda: x
        if self.kind == "reject":
            raise Rejected("no", after=2)
        raise {"retry": ConnectionError, "fatal": KeyError, "exit": SystemExit, "ctrl-c": KeyboardInterrupt}[
            self.kind
        ](self.kind)


@pytest.mark.parametrize(("kind", "on"), [("chain", OSError), ("cause", OSError), ("chain", RuntimeError)])
def test_the_chain_comes_along(tmp_path: Path, kind: str, on: type[Exception]) -> None:
    io = IO.replace(on=caused_by(on))
    assert list(io.map(Fails(tmp_path, kind, 2), [1, 2], workers=1, context="fork")) == [1, 2]
    assert runs(tmp_path) == 6
    with pytest.raises(RuntimeError, match="wrapped") as caught:
        list(io.map(Fails(tmp_path, kind, 99), [3], workers=1, context="fork"))
    inner = caught.value.__cause__ if kind == "cause" else caught.value.__context__
    assert isinstance(inner, OSError) and inner.errno == 5
    assert caught.value.__suppress_context__ is (kind == "cause")
    notes = caught.value.__notes__
    assert notes[0].startswith("in a worker of map:\n") and "Traceback" in notes[0]
    assert notes[1].startswith("retry: gave up after 3 attempts")


@pytest.mark.parametrize("kind", ["strange", "unpicklable"])
def test_what_can_not_travel_is_that_items_error(tmp_path: Path, kind: str) -> None:
    io = IO.replace(on=lambda error: True)
    outcomes = list(io.quiet().map(Fails(tmp_path, kind, 99), [1, 2], workers=1, context="fork"))
    assert [outcome.ok for outcome in outcomes] == [False, False]
    for outcome in outcomes:
        text = "Strange: 1 2" if kind == "strange" else "<lambda>"
        assert outcome.error is not None and text in str(outcome.error)
        if kind == "strange":
            assert outcome.attempts == 1  # `on` is not asked about a stand-in


def test_a_strange_cause_does_not_hide_the_error(tmp_path: Path) -> None:
    assert list(IO.map(Fails(tmp_path, "strange cause", 1), [1], workers=1, context="fork")) == [1]


def test_quiet_keeps_every_exception_and_loud_stops(tmp_path: Path) -> None:
    class Mixed:
        def __call__(self, x: int) -> int:
            if x == 2:
                raise KeyError(x)
            if x == 4:
                raise ConnectionError(x)
            return x

    outcomes = list(IO.quiet().map(Mixed(), range(6), workers=2, context="fork"))
    assert [outcome.index for outcome in outcomes] == list(range(6))
    assert [outcome.attempts for outcome in outcomes] == [1, 1, 1, 1, 3, 1]
    assert [type(outcome.error) for outcome in outcomes if not outcome.ok] == [KeyError, ConnectionError]
    assert [outcome.unwrap() for outcome in outcomes if outcome.ok] == [0, 1, 3, 5]
    got = []
    with pytest.raises(KeyError, match="2"):
        for value in IO.map(Mixed(), range(6), workers=2, context="fork"):
            got.append(value)
    assert got == [0, 1]


@pytest.mark.parametrize(("kind", "error"), [("exit", SystemExit), ("ctrl-c", KeyboardInterrupt)])
def test_stops_in_a_worker_stop_the_program(tmp_path: Path, kind: str, error: type[BaseException]) -> None:
    for results in (IO.map, IO.quiet().map):
        with pytest.raises(error):
            list(results(Fails(tmp_path, kind, 99), range(9), workers=2, context="fork"))  # type: ignore[operator]


def test_parity_of_the_decisions(tmp_path: Path) -> None:
    """Attempts, waits, budget, events as in every other face; the decisions are the parent's."""
    events: list[Any] = []
    budget = Budget(0, 3)
    io = Retry(
        ConnectionError, attempts=4, wait=lambda n, e: n / 2, budget=budget, hooks=(events.append,), name="m"
    )
    with testing() as clock:
        got = list(io.map(Fails(tmp_path, "retry", 2), [1], workers=1, context="fork"))
        assert got == [1] and clock.sleeps == [0.5, 1.0] and budget.retries == 2
        assert [event.kind for event in events] == ["retry", "retry", "recovered"]
        with pytest.raises(ConnectionError) as caught:
            list(io.map(Fails(tmp_path, "retry", 99), [2], workers=1, context="fork"))
        assert caught.value.__notes__[1] == "retry: gave up after 2 attempts in 0.5 s (budget)"
        assert (budget.calls, budget.retries, budget.refused) == (2, 3, 1)
        rejected = io.replace(budget=None, wait=lambda n, e: float(e.after))  # type: ignore[attr-defined]
        assert list(rejected.map(Fails(tmp_path, "reject", 1), [3], workers=1, context="fork")) == [3]
        assert clock.sleeps[-1] == 2
        tight = io.replace(within=0.25, budget=None)
        with pytest.raises(ConnectionError) as caught:
            list(tight.map(Fails(tmp_path, "retry", 99), [4], workers=1, context="fork"))
        assert "(within)" in caught.value.__notes__[1]


class Slow:
    """Runs for ever the first time."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self, x: int) -> float | None:
        if mark(self.folder, x) == 0 and x == 1:
            signal.pause()
        return remaining()


def test_each_kills_a_worker_that_is_late(tmp_path: Path) -> None:
    events: list[Any] = []
    io = Retry(ConnectionError, each=0.2, wait=0, hooks=(events.append,))
    got = list(io.map(Slow(tmp_path), range(4), workers=2, context="fork"))
    assert len(got) == 4 and all(left is not None and 0 < left <= 0.2 for left in got)
    retried = [event for event in events if event.kind == "retry"]
    assert retried and all("longer than each=0.2 s" in str(event.error) for event in retried)
    assert (tmp_path / "1").stat().st_size >= 2


def test_within_ends_a_late_item(tmp_path: Path) -> None:
    io = Retry(ConnectionError, within=0.2, wait=0, hooks=())
    outcomes = list(io.quiet().map(Slow(tmp_path), range(3), workers=2, context="fork"))
    assert len(outcomes) == 3 and isinstance(outcomes[1].error, TimeoutError)


# Flow


def test_items_are_pulled_lazily() -> None:
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for i in range(1000):
            pulled += 1
            yield i

    results = IO.map(square, items(), workers=2, context="fork")
    assert pulled == 0
    for k in range(20):
        assert next(results) == k * k
        assert pulled <= k + 1 + 4 * 2
    results.close()  # type: ignore[attr-defined]
    assert pulled <= 20 + 4 * 2


def test_an_error_of_the_source_comes_at_its_turn() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise LookupError("the source")

    got = []
    with pytest.raises(LookupError, match="the source"):
        for value in IO.map(square, items(), workers=2, context="fork"):
            got.append(value)
    assert got == [0, 1, 4, 9, 16]


def test_empty_items_start_nothing() -> None:
    assert list(IO.map(square, [], workers=2)) == [] and list(IO.quiet().map(square, [])) == []


def test_two_hundred_items_leave_nothing() -> None:
    assert list(IO.map(square, range(200), workers=2, context="fork")) == [x * x for x in range(200)]


def test_leaving_in_the_middle_reaps_the_workers() -> None:
    def leave() -> int:
        for value in IO.map(square, range(10**6), workers=2, context="fork"):
            if value > 50:
                return value
        raise AssertionError

    assert leave() == 64
    results = IO.map(square, range(10**6), workers=2, context="fork")
    next(results)
    with pytest.raises(ZeroDivisionError):
        results.throw(ZeroDivisionError)  # type: ignore[attr-defined]


def test_fork_takes_what_can_not_be_pickled() -> None:
    made = [lambda k=k: k for k in range(6)]  # type: ignore[misc]
    assert list(IO.map(lambda f: f() + 1, made, workers=2, context="fork")) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods(tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import operator\n"
        "from lmlab.retry import Retry\n"
        "if __name__ == '__main__':\n"
        f"    io = Retry(ConnectionError)\n"
        f"    print(list(io.map(abs, range(-5, 0), workers=1, context='{method}')))\n"
        f"    print(list(io.quiet().map(abs, [lambda: 1, 2], workers=1, context='{method}'))[0].error)\n"
    )
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert ran.stdout.splitlines()[0] == "[5, 4, 3, 2, 1]" and ran.returncode == 0, ran.stderr
    assert "pickle" in ran.stdout.splitlines()[1] and ran.stderr == ""


def test_workers_that_can_not_start_are_not_respawned_for_ever(tmp_path: Path) -> None:
    program = tmp_path / "broken.py"
    program.write_text(
        "import os\n"
        "from lmlab.retry import Retry\n"
        "if __name__ != '__main__':\n"
        "    os._exit(7)\n"
        "print(list(Retry(ConnectionError).map(abs, range(5), workers=1, context='spawn')))\n"
    )
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert "3 workers in a row died before they took an item (exit code 7)" in ran.stderr


PARENT = """
import os, signal
from lmlab.retry import Retry
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run behind "&" it is ignored
def stuck(x):
    os.write(1, b"busy\\n")  # one write: with PYTHONUNBUFFERED two prints could mix
    signal.pause()
list(Retry(ConnectionError).map(stuck, range(9), workers=2, context="fork"))
"""


def test_a_killed_parent_leaves_no_child() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == parent.stdout.readline() == b"busy\n"
        parent.kill()
        # The workers hold the other end of this pipe: it ends when the last of them is gone.
        begun = time.monotonic()
        assert parent.stdout.read() == b""
        assert time.monotonic() - begun < 20


def test_ctrl_c_in_the_parent_ends_the_workers() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        assert parent.stdout.readline() == parent.stdout.readline() == b"busy\n"
        parent.send_signal(signal.SIGINT)
        assert parent.stdout.read() == b""
        assert b"KeyboardInterrupt" in parent.stderr.read()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"workers": 0}, ValueError, "workers: expected at least 1, got 0"),
        ({"workers": 2.0}, TypeError, "workers: expected an integer"),
        ({"kills": 0}, ValueError, "kills: expected at least 1"),
        ({"kills": True}, TypeError, "kills"),
        ({"context": "thread"}, ValueError, "context: expected one of .*fork.*, got 'thread'"),
    ],
)
def test_arguments_are_checked_at_the_call(kwargs: Any, error: type[Exception], text: str) -> None:
    maps: list[Callable[..., Any]] = [IO.map, IO.quiet().map]
    for results in maps:
        with pytest.raises(error, match=text):
            results(square, [1], **kwargs)
        with pytest.raises(TypeError, match="fn: expected a function of one item, got 3"):
            results(3, [1])
        with pytest.raises(TypeError, match="not iterable"):
            results(square, 3)
