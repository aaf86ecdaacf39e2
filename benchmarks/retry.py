"""`lmlab bench retry`: one successful call against rivals, and what failures leave behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice, repeat
from pathlib import Path
from statistics import median
from typing import Any

from lmlab.lab.bench import Row, benchmark, compare
from lmlab.retry import Budget, Retry
from lmlab.retry.testing import testing

IO = Retry(ConnectionError, hooks=())
BUDGET = IO.replace(budget=Budget(0.1))


def work(x: int) -> int:
    return x


@benchmark("retry")
def rows(quick: bool) -> Iterator[Row]:
    calls = 200 if quick else 20_000
    yield from _success(calls, repeats=3 if quick else 15)
    yield _asynchronous(calls, repeats=3 if quick else 15)
    yield _imports(repeats=1 if quick else 9)
    yield from _failures()
    yield _law(1000 if quick else 100_000)
    yield from _streams(3000 if quick else 1_000_000)
    yield from _maps(60 if quick else 2000)


# One successful call


class Su:
    """The article's shape, a `for` over a small object and a `with`, as short as it can be written."""

    def __init__(self, attempts: int, wait: float) -> None:
        self.attempts, self.wait, self.done = attempts, wait, False

    def __iter__(self) -> Iterator[Su]:
        for n in range(self.attempts):
            if n:
                time.sleep(self.wait)
            yield self
            if self.done:
                return

    def __enter__(self) -> None:
        self.done = False

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        self.done = kind is None
        return True


def _plain(x: int) -> int:
    return work(x)


def _hand(x: int) -> int:
    for n in range(5):
        try:
            return work(x)
        except ConnectionError:
            if n == 4:
                raise
            time.sleep(0.1)
    raise AssertionError


def _su(x: int) -> int:
    for attempt in Su(5, 0.1):
        with attempt:
            value = work(x)
    return value


def _block(x: int) -> int:
    for attempt in BUDGET:
        with attempt:
            value = work(x)
    return value


def _while(x: int) -> int:
    run = BUDGET.run()
    while True:
        with run:
            return work(x)


def _decorators() -> dict[str, Callable[[int], int]]:
    import backoff as backoff_
    import stamina
    import tenacity

    return {
        "tenacity": tenacity.retry(
            retry=tenacity.retry_if_exception_type(ConnectionError),
            stop=tenacity.stop_after_attempt(5),
            wait=tenacity.wait_random_exponential(),
            reraise=True,
        )(work),
        "stamina": stamina.retry(on=ConnectionError, attempts=5)(work),
        "backoff": backoff_.on_exception(backoff_.expo, ConnectionError, max_tries=5)(work),
    }


def _success(calls: int, repeats: int) -> Iterator[Row]:
    cases = {
        "plain": work,
        "hand": _hand,
        "decorator": IO(work),
        "decorator, budget": BUDGET(work),
        "Su": _su,
        "block": _block,
        "while": _while,
        **_decorators(),
    }

    def loop(f: Callable[[int], int]) -> Callable[[], None]:
        def many() -> None:
            for _ in repeat(None, calls):
                f(1)

        return many

    timed = compare({name: loop(f) for name, f in cases.items()}, repeats=repeats)
    t = {name: timing.median / calls for name, timing in timed.items()}

    def row(what: str, ours: str, rival: str, target: str, note: str = "") -> Row:
        ratio = t[ours] / t[rival] if target.startswith("<=") or not target else t[rival] / t[ours]
        return Row(what, rival, ours=t[ours], theirs=t[rival], ratio=ratio, target=target, note=note)

    yield row("decorator with budget, one argument", "decorator, budget", "hand", "<= 1.15", "ours / rival")
    yield row("decorator, one argument", "decorator", "hand", "", "ours / rival")
    yield row("decorator, one argument", "decorator", "plain", "", "ours / rival; plain: the call alone")
    yield row("decorator with budget", "decorator, budget", "tenacity", ">= 50", "rival / ours")
    yield row("decorator with budget", "decorator, budget", "stamina", ">= 50", "rival / ours")
    yield row("decorator with budget", "decorator, budget", "backoff", ">= 8", "rival / ours")
    yield row("for and with, budget", "block", "Su", "<= 1.5", "ours / rival; rival: Su's shape")
    yield row("while, with, return, budget", "while", "Su", "<= 0.95", "ours / rival; rival: Su's shape")


def _asynchronous(calls: int, repeats: int) -> Row:
    async def awork(x: int) -> int:
        return x

    wrapped = BUDGET(awork)

    def loop(f: Callable[[int], Any]) -> Callable[[], None]:
        async def many() -> None:
            for _ in repeat(None, calls):
                await f(1)

        def run() -> None:
            coroutine = many()  # nothing in it waits: it needs no event loop, whose start would count
            try:
                coroutine.send(None)
            except StopIteration:
                return

        return run

    t = compare({"ours": loop(wrapped), "plain": loop(awork)}, repeats=repeats)
    ours, plain = t["ours"].median / calls, t["plain"].median / calls
    return Row("async decorator with budget", "plain await", ours, plain, ratio=ours / plain, target="<= 3")


def _imports(repeats: int) -> Row:
    def cold(statement: str, cache: str) -> float:
        program = (
            f"import sys, time; sys.path[:0] = {sys.path!r}; begun = time.process_time(); "
            f"{statement}; print(time.process_time() - begun)"
        )
        # Both from byte code, wherever the environment keeps it or forbids it.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        ran = subprocess.run(
            [sys.executable, "-S", "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=environment | {"PYTHONPYCACHEPREFIX": cache},
        )
        return float(ran.stdout)

    mine, other = "from lmlab.retry import Retry", "from tenacity import retry"
    with tempfile.TemporaryDirectory() as cache:
        cold(mine, cache), cold(other, cache)  # compiles
        taken = [(cold(mine, cache), cold(other, cache)) for _ in range(repeats)]
    ours, theirs = median(a for a, _ in taken), median(b for _, b in taken)
    return Row("import of Retry, cold", "tenacity", ours, theirs, ratio=ours / theirs, target="<= 0.5")


# Failures


class Tensor:
    """Stands for what a failing frame holds."""


class Broken(Exception):
    pass


_alive: list[weakref.ref[Tensor]] = []


def _fail() -> None:
    tensor = Tensor()
    _alive.append(weakref.ref(tensor))
    raise Broken


def _failing() -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """Per library: a block and a decorated function that fail."""
    import stamina
    import tenacity

    io = Retry(Broken, attempts=3, wait=0, hooks=())
    settings: dict[str, Any] = {
        "stop": tenacity.stop_after_attempt(3),
        "sleep": lambda seconds: None,
        "reraise": True,
    }

    def ours() -> None:
        for attempt in io:
            with attempt:
                _fail()

    def tenacity_() -> None:
        for attempt in tenacity.Retrying(**settings):
            with attempt:
                _fail()

    def stamina_() -> None:
        for attempt in stamina.retry_context(on=Broken, attempts=3, timeout=None):
            with attempt:
                _fail()

    return {
        "ours": (ours, io(_fail)),
        "tenacity": (tenacity_, tenacity.retry(**settings)(_fail)),
        "stamina": (stamina_, stamina.retry(on=Broken, attempts=3, timeout=None)(_fail)),
    }


def _frames(f: Callable[[], None], plain: int) -> int:
    """Frames in the traceback of `f` beyond those that it has without a retry."""
    try:
        f()
    except Broken as error:
        traceback, count = error.__traceback__, 0
        while traceback is not None:
            traceback, count = traceback.tb_next, count + 1
        return count - plain
    raise AssertionError


def _kept(f: Callable[[], None]) -> int:
    """Of 100 failures, those whose tensors are alive afterwards, without the cyclic collector."""
    _alive.clear()
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            with contextlib.suppress(Broken):
                f()
        return sum(reference() is not None for reference in _alive[2::3])
    finally:
        gc.enable()


@contextlib.contextmanager
def _without_sleep(attempts: int) -> Iterator[None]:
    """Take the sleeps out of stamina, in its own way, and its log."""
    import stamina

    stamina.instrumentation.set_on_retry_hooks([])
    stamina.set_testing(True, attempts=attempts)
    try:
        yield
    finally:
        stamina.set_testing(False)
        stamina.instrumentation.set_on_retry_hooks(None)


def _failures() -> Iterator[Row]:
    with _without_sleep(attempts=3):
        cases = _failing()
        # The measuring frame, the function with the block, and the failing function: 3; 2 without a block.
        blocks = {name: _frames(block, 3) for name, (block, _) in cases.items()}
        decorated = {name: _frames(function, 2) for name, (_, function) in cases.items()}
        kept = {name: _kept(block) for name, (block, _) in cases.items()}
    for what, counts, bound in (
        ("frames added in a block", blocks, 0),
        ("frames added by a decorator", decorated, 1),
        ("objects alive after 100 failures, gc off", kept, 0),
    ):
        for rival in ("tenacity", "stamina"):
            ours = float(counts["ours"])
            yield Row(what, rival, ours, float(counts[rival]), unit="", ratio=ours, target=f"<= {bound}")


# Budgets


def _law(calls: int) -> Row:
    """Eight threads whose calls all fail: exactly floor(0.1 calls + 1) retries."""
    budget = Budget(0.1, burst=1)
    call = Retry(Broken, attempts=10**9, wait=0, budget=budget, hooks=())(_raise)

    def some() -> None:
        for _ in range(calls // 8):
            with contextlib.suppress(Broken):
                call()

    threads = [threading.Thread(target=some) for _ in range(8)]
    with testing():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = budget.calls // 10 + 1
    off = abs(budget.retries - expected)
    return Row(
        "8 threads, all calls fail: retries",
        "the law",
        ours=float(budget.retries),
        theirs=float(expected),
        unit="",
        ratio=float(off),
        target="<= 0",
        note="ratio: how far off",
    )


def _raise() -> None:
    raise Broken


# Streams and processes


def _streams(n: int) -> Iterator[Row]:
    def source(faults: bool) -> Callable[[int], Iterator[int]]:
        broken: set[int] = set()

        def rows(cursor: int = 0) -> Iterator[int]:
            for i in range(cursor, n):
                if faults and i % 100 == 50 and i not in broken:
                    broken.add(i)
                    raise ConnectionError
                yield i

        return rows

    def exhaust(made: Iterator[int]) -> None:
        for _ in made:
            pass

    plain = source(faults=False)
    with testing():
        t = compare(
            {"ours": lambda: exhaust(IO.stream(source(faults=True))), "plain": lambda: exhaust(plain(0))},
            repeats=3,
        )
        seen = list(IO.stream(source(faults=True)))
    more = (t["ours"].median - t["plain"].median) / n * 1e9
    yield Row(
        f"stream, {n} items, 1 % faults: time an item",
        "plain generator",
        t["ours"].median / n,
        t["plain"].median / n,
        ratio=more,
        target="<= 150",
        note="ratio: ns more an item",
    )
    import stamina

    few = min(n, 3000)
    wrapped = stamina.retry(on=ConnectionError, attempts=None, timeout=None)(source(faults=True))
    with _without_sleep(attempts=10**6):
        theirs = list(islice(wrapped(0), 10 * few))
    wrong = len(seen) - len(set(seen)) + len(set(range(n)) ^ set(seen))
    yield Row(
        "stream: items lost or delivered twice",
        "stamina",
        float(wrong),
        float(len(theirs) - len(set(theirs))),
        unit="",
        ratio=float(wrong),
        target="<= 0",
        note=f"stamina: of the first {len(theirs)} that it gives",
    )


def _empty(x: int) -> int:
    return x


class _KillsSome:
    """The first run of one item in a hundred kills its worker."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, x: int) -> int:
        with (Path(self.folder) / "runs").open("ab") as file:
            file.write(b".")
        if x % 100 == 50:
            try:
                (Path(self.folder) / str(x)).touch(exist_ok=False)
            except FileExistsError:
                return x
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def _maps(n: int) -> Iterator[Row]:
    import multiprocessing

    fork = multiprocessing.get_context("fork")
    items = max(n // 5, 60)
    failed = 0
    for _ in range(4):
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, mp_context=fork) as pool:
            try:
                list(pool.map(_KillsSome(folder), range(items)))
            except BrokenProcessPool:
                failed += 1
    with tempfile.TemporaryDirectory() as folder:
        got = list(IO.map(_KillsSome(folder), range(items), workers=2, context="fork"))
        runs = (Path(folder) / "runs").stat().st_size
    deaths = len([i for i in range(items) if i % 100 == 50])
    missing = sum(a != b for a, b in zip(got, range(items), strict=True)) + abs(runs - items - deaths)
    yield Row(
        f"map, {items} items, 1 in 100 killed: results missing or runs too many",
        "ProcessPoolExecutor",
        float(missing),
        unit="",
        ratio=float(missing),
        target="<= 0",
        note=f"{deaths} workers killed; ProcessPoolExecutor failed in {failed} of 4",
    )

    def ours() -> None:
        for _ in IO.map(_empty, range(n), workers=2, context="fork"):
            pass

    def pool_map() -> None:
        with ProcessPoolExecutor(2, mp_context=fork) as pool:
            for _ in pool.map(_empty, range(n)):
                pass

    t = compare({"ours": ours, "pool": pool_map}, repeats=3 if n < 1000 else 7, clock="wall")
    yield Row(
        "map, empty function: items a second",
        "ProcessPoolExecutor",
        n / t["ours"].median,
        n / t["pool"].median,
        unit="/s",
        ratio=t["pool"].median / t["ours"].median,
        target=">= 1",
        note="2 workers, chunks of 1, their start included",
    )
