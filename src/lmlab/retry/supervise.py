"""`map`: many processes whose parent decides, so that a killed worker costs only the item that it held."""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lmlab.retry import clock
from lmlab.retry.deadline import earliest
from lmlab.retry.engine import INSIDE_SLOW, Attempt
from lmlab.retry.quiet import Outcome

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

    from lmlab.retry.policy import Retry

AHEAD = 4  # items pulled ahead of the consumer, for each worker
HOPELESS = 3  # workers in a row that die before they take an item


class WorkerKilled(Exception):
    """Workers died, one after the other, on the same item: `index` in the input, `kills`, last `exitcode`."""

    def __init__(self, index: int, kills: int, exitcode: int | None) -> None:
        super().__init__(index, kills, exitcode)
        self.index, self.kills, self.exitcode = index, kills, exitcode

    def __str__(self) -> str:
        return f"item {self.index} killed {self.kills} workers (last exit code {self.exitcode})"


def supervise(
    policy: Retry,
    fn: Callable[[Any], Any],
    items: Iterable[Any],
    workers: int | None,
    kills: int,
    ordered: bool,
    context: str | None,
    quiet: bool,
) -> Iterator[Any]:
    """The values of `Retry.map`, or with `quiet` the outcomes; checks its arguments at once."""
    import multiprocessing

    if not callable(fn):
        raise TypeError(f"fn: expected a function of one item, got {fn!r}. Right: io.map(fn, items)")
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name, value in (("workers", workers), ("kills", kills)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer >= 1, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    methods = multiprocessing.get_all_start_methods()
    if context is not None and context not in methods:
        raise ValueError(f"context: expected one of {', '.join(methods)} or None, got {context!r}")
    pool = _Pool(multiprocessing.get_context(context), fn)
    return _Map(policy, pool, iter(items), workers, kills, ordered, quiet).results()


class _Task:
    """An item on its way, with its run."""

    __slots__ = ("begun", "index", "item", "kills", "run")

    def __init__(self, index: int, item: Any, run: Attempt) -> None:
        self.index, self.item, self.run = index, item, run
        self.kills = 0
        self.begun = False


class _Worker:
    __slots__ = ("pipe", "process", "ready", "task")

    def __init__(self, process: BaseProcess, pipe: Connection, task: _Task | None) -> None:
        self.process, self.pipe, self.task = process, pipe, task
        self.ready = False


class _Pool:
    """The worker processes. Each has a pipe of its own: no lock is shared that a dying worker could hold."""

    def __init__(self, context: BaseContext, fn: Callable[[Any], Any]) -> None:
        self._context = context
        self._fn = fn
        self._owner = os.getpid()
        self.workers: list[_Worker] = []
        self.forks = context.get_start_method() == "fork"

    def open(self) -> None:
        import selectors
        from multiprocessing import Pipe, util

        self._selector = selectors.DefaultSelector()
        # Workers block on the reading end: it ends when the parent does.
        self._lifeline_reader, self._lifeline = Pipe(duplex=False)
        # Where the interpreter ends before the iterator does, multiprocessing would wait for the workers.
        self._finalizer = util.Finalize(self, _kill_all, args=(self.workers,), exitpriority=100)

    def start(self, task: _Task | None = None, left: float | None = None) -> None:
        """A new worker; with `task`, one that got it by the fork and is at work on it."""
        from lmlab.retry.worker import serve

        pipe, theirs = self._context.Pipe()
        inherited: list[Any] = []
        if self.forks:
            inherited = [self._selector, self._lifeline, pipe, *(worker.pipe for worker in self.workers)]
        first = None if task is None else (left, task.item)
        process = self._context.Process(  # type: ignore[attr-defined]
            target=serve, args=(theirs, self._lifeline_reader, inherited, self._fn, first), name="lmlab-map"
        )
        try:
            process.start()
        except BaseException:
            pipe.close()
            raise
        finally:
            theirs.close()
        worker = _Worker(process, pipe, task)
        worker.ready = task is not None
        self.workers.append(worker)
        import selectors

        self._selector.register(pipe, selectors.EVENT_READ, worker)
        self._selector.register(process.sentinel, selectors.EVENT_READ, worker)

    def wait(self, timeout: float | None) -> tuple[list[_Worker], list[_Worker]]:
        """The workers with a message and, of the others, those that died."""
        speaking: list[_Worker] = []
        ended: list[_Worker] = []
        for key, _ in self._selector.select(timeout):
            (ended if key.fd == key.data.process.sentinel else speaking).append(key.data)
        return speaking, [worker for worker in ended if worker not in speaking]

    def remove(self, worker: _Worker, kill: bool = True) -> int | None:
        """Reap a worker, which has died or (`kill`) is to die now; its exit code."""
        self._selector.unregister(worker.pipe)
        self._selector.unregister(worker.process.sentinel)
        self.workers.remove(worker)
        worker.pipe.close()
        if not kill:
            worker.process.join(timeout=1)  # its pipe has ended a moment before itself
        worker.process.kill()
        worker.process.join()
        code = worker.process.exitcode
        worker.process.close()
        return code

    def close(self) -> None:
        """End all workers: the idle by the end of their pipe, the others by a kill."""
        if os.getpid() != self._owner:
            return  # a forked child has a copy of the iterator, but the workers aren't its own
        for worker in self.workers:
            worker.pipe.close()
            if worker.task is not None or not worker.ready:
                worker.process.kill()
        for worker in self.workers:
            worker.process.join(timeout=1)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
        self.workers.clear()
        self._selector.close()
        self._lifeline.close()
        self._lifeline_reader.close()
        self._finalizer.cancel()


def _kill_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()


class _Map:
    """One iteration: what is queued, what waits for its retry, what is done and not yet delivered."""

    def __init__(
        self,
        policy: Retry,
        pool: _Pool,
        items: Iterator[Any],
        workers: int,
        kills: int,
        ordered: bool,
        quiet: bool,
    ) -> None:
        self._policy, self._pool, self._items = policy, pool, items
        self._size, self._kills, self._ordered, self._quiet = workers, kills, ordered, quiet
        self._queue: deque[_Task] = deque()
        self._waiting: list[tuple[float, int, _Task]] = []  # a heap by due time
        self._done: dict[int, Outcome[Any]] = {}
        self._pulled = 0
        self._delivered = 0
        self._exhausted = False
        self._source_error: Exception | None = None
        self._died_idle = 0

    def results(self) -> Iterator[Any]:
        outcome: Outcome[Any] | None = None
        self._pool.open()
        try:
            while True:
                self._feed()
                while self._deliverable():
                    outcome = self._take()
                    self._delivered += 1
                    if self._quiet:
                        yield outcome
                    elif outcome.error is not None:
                        raise outcome.error
                    else:
                        yield outcome.value
                    self._feed()
                if self._exhausted and self._delivered == self._pulled:
                    if self._source_error is not None:
                        raise self._source_error
                    return
                speaking, ended = self._pool.wait(self._timeout())
                for worker in speaking:
                    self._hear(worker)
                for worker in ended:
                    self._bury(worker)
                self._stop_late()
        finally:
            # This frame is in the traceback of what it raised: kept here, the error would be in a cycle.
            outcome = self._source_error = None
            self._done.clear()
            self._pool.close()

    # Delivery

    def _deliverable(self) -> bool:
        return self._delivered in self._done if self._ordered else bool(self._done)

    def _take(self) -> Outcome[Any]:
        return self._done.pop(self._delivered if self._ordered else next(iter(self._done)))

    def _succeed(self, task: _Task, value: Any) -> None:
        task.run._succeeded()
        self._done[task.index] = Outcome(True, value, None, task.run.n, task.index, task.kills)

    def _fail(self, task: _Task, error: Exception) -> None:
        self._done[task.index] = Outcome(False, None, error, task.run.n, task.index, task.kills)
        if not self._quiet:
            # The iterator ends at this item: what comes after it is not begun any more.
            self._items = iter(())
            self._queue = deque(other for other in self._queue if other.index < task.index)

    # Work

    def _feed(self) -> None:
        """Give the idle workers something to do; start workers where there is more."""
        if self._waiting:
            now = clock.active.read()
            while self._waiting and self._waiting[0][0] <= now:
                task = heapq.heappop(self._waiting)[2]
                task.run.n += 1
                self._queue.append(task)
        pool = self._pool
        idle = [worker for worker in pool.workers if worker.task is None]
        free = self._size - len(pool.workers) + len(idle)
        while len(self._queue) < free and self._pull():
            pass
        for worker in idle:
            if worker.ready and self._queue:
                self._send(worker, self._queue.popleft())
        starting = sum(not worker.ready for worker in pool.workers)
        for _ in range(min(len(self._queue) - starting, self._size - len(pool.workers))):
            pool.start()

    def _pull(self) -> bool:
        """Take one more item from the source, if the consumer is not too far behind."""
        if self._exhausted or self._pulled - self._delivered >= AHEAD * self._size:
            return False
        try:
            item = next(self._items)
        except StopIteration:
            self._exhausted = True
            return False
        except Exception as error:  # raised at its turn: what was pulled before is finished
            self._exhausted = True
            self._source_error = error
            return False
        run = Attempt(self._policy, INSIDE_SLOW, False, self._quiet)
        self._queue.append(_Task(self._pulled, item, run))
        self._pulled += 1
        return True

    def _send(self, worker: _Worker, task: _Task) -> None:
        now = clock.active.read()
        run = task.run
        if not task.begun:
            task.begun = True
            if self._policy._begin is not None:
                self._policy._begin()
            run._begin(now)
        run._stop = run._allow(now)
        left = None if run._stop is None else max(0.0, run._stop - now)
        import pickle

        try:
            message = pickle.dumps((left, task.item), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            if self._pool.forks:
                self._pool.remove(worker)
                self._pool.start(task, left)
            else:
                self._fail(task, error)
            return
        try:
            worker.pipe.send_bytes(message)
        except OSError:  # it has died idle, and is buried when the pool says so
            self._queue.appendleft(task)
            return
        worker.task = task

    def _hear(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv_bytes()
        except (EOFError, OSError):
            self._bury(worker)
            return
        task, worker.task = worker.task, None
        if task is None:
            worker.ready = True
            return
        self._died_idle = 0
        import pickle

        from lmlab.retry.worker import Opaque, unpack

        try:
            ok, *rest = pickle.loads(message)
            error = None if ok else unpack(rest[0])
        except Exception as unreadable:
            self._fail(task, unreadable)
            return
        if error is None:
            self._succeed(task, rest[0])
        elif not isinstance(error, Exception):
            raise error  # Ctrl-C or an exit in a worker is for the whole program, at once
        else:
            error.add_note(f"in a worker of map:\n{rest[1].rstrip()}")
            if isinstance(error, Opaque):
                self._fail(task, error)
            else:
                self._decide(task, error)

    def _decide(self, task: _Task, error: Exception, each: bool = False, within: bool = False) -> None:
        run = task.run
        try:
            again = run._failed(error, each=each, within=within)
        except Exception as broken:  # of a predicate or a wait
            broken.__context__ = error
            raise
        if again:
            heapq.heappush(self._waiting, (clock.active.due(run._wait), task.index, task))
        else:
            self._fail(task, error)

    def _bury(self, worker: _Worker) -> None:
        """A worker died: only the item that it held runs again."""
        task = worker.task
        code = self._pool.remove(worker, kill=False)
        if task is None:
            self._died_idle += 1
            if self._died_idle >= HOPELESS:
                raise RuntimeError(
                    f"map: {HOPELESS} workers in a row died before they took an item (exit code {code}); "
                    "under spawn and forkserver the main module must be importable without side effects"
                )
            return
        self._died_idle = 0
        task.kills += 1
        if task.kills < self._kills:
            self._queue.appendleft(task)
            return
        killed = WorkerKilled(task.index, task.kills, code)
        task.run._give_up(killed, clock.active.read() - task.run._start, "kills")
        self._fail(task, killed)

    # Time

    def _timeout(self) -> float | None:
        """Seconds until a wait or an attempt is over; None: only the workers can bring news."""
        ends = [worker.task.run._stop for worker in self._pool.workers if worker.task is not None]
        if self._waiting:
            ends.append(self._waiting[0][0])
        end = earliest(*ends)
        return None if end is None else clock.active.until(end)

    def _stop_late(self) -> None:
        """Kill the workers whose attempt is over its time."""
        for worker in list(self._pool.workers):
            task = worker.task
            if task is None or task.run._stop is None or task.run._stop > clock.active.read():
                continue
            self._pool.remove(worker)
            run = task.run
            within = run._stop == run._end
            self._decide(task, run._timeout(), each=not within, within=within)
