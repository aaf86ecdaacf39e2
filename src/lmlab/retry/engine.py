"""The decision after a failure, and the `Attempt` that carries one run through it.

All state of a run lives in its `Attempt`: a policy can be shared by threads, tasks and recursive calls.
A run that succeeds at once touches nothing but two fields; everything else is on the failing path.
"""

from __future__ import annotations

import contextlib
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from lmlab.retry import clock
from lmlab.retry.deadline import AsyncioAlarm, TrioAlarm, alarm, current, earliest
from lmlab.retry.events import Event, attempts, fire
from lmlab.retry.match import Rejected

if TYPE_CHECKING:
    from lmlab.retry.policy import Retry

# Where a run stands. NEW and READY may go the quick way: first attempt, no deadline of its own.
NEW, READY, INSIDE, DONE = 0, 1, 2, 3
NEW_TIMED, READY_SLOW, INSIDE_SLOW, FAILED, ENDED = 4, 5, 6, 7, 8

NOTE = "retry: gave up after "


class Attempt:
    """One object a run: the loop variable, and the target of `with`.

    `n`: number of this attempt, from 1; after the loop, the attempts made. `ok`: True once a body ended
    without an exception. `error`: the last failure; None after success, and kept after the loop only in
    quiet runs, because an error that a frame keeps would keep that frame alive.
    """

    __slots__ = (
        *("n", "ok", "error"),
        *("_policy", "_state", "_loop", "_quiet"),
        *("_asynchronous", "_start", "_end", "_stop", "_wait", "_token", "_alarm"),
    )

    n: int
    ok: bool
    error: Exception | None
    _policy: Retry
    _state: int
    _loop: bool  # made by a `for`, which alone moves from one attempt to the next
    _quiet: bool
    # Set on the failing path, or by policies with `within` or `each`:
    _asynchronous: bool
    _start: float  # when the run began; without deadlines of its own, its first failure
    _end: float | None  # the deadline of the run
    _stop: float | None  # the deadline of this attempt
    _wait: float
    _token: Token[float | None] | None
    _alarm: AsyncioAlarm | TrioAlarm | None

    def __init__(self, policy: Retry, state: int, loop: bool, quiet: bool) -> None:
        self.n = 1
        self.ok = False
        self.error = None
        self._policy = policy
        self._state = state
        self._loop = loop
        self._quiet = quiet

    # The loop

    def __iter__(self) -> Attempt:
        return self

    def __next__(self) -> Attempt:
        state = self._state
        if state == NEW:
            self._state = READY
            return self
        if state == DONE:
            raise StopIteration
        if state == FAILED:
            self._pause()
        elif not self._opened(asynchronous=False):
            raise StopIteration
        return self

    def __aiter__(self) -> Attempt:
        return self

    async def __anext__(self) -> Attempt:
        if self._state == FAILED:
            await self._apause()
        elif not self._opened(asynchronous=True):
            raise StopAsyncIteration
        return self

    def _opened(self, asynchronous: bool) -> bool:
        """Move a loop on where no wait is due; False: it is over."""
        state = self._state
        if state in (DONE, ENDED):
            return False
        if state in (NEW, NEW_TIMED):
            self._asynchronous = asynchronous
            self._state = READY if state == NEW else READY_SLOW
            return True
        raise RuntimeError(
            "a retry loop came round without an attempt: put the body inside `with attempt:`\n"
            "    for attempt in io:\n        with attempt:\n            ..."
        )

    def _pause(self) -> None:
        try:
            clock.active.pause(self._wait)
        except BaseException:
            self.error = None
            raise
        self.n += 1
        self._state = READY_SLOW

    async def _apause(self) -> None:
        try:
            await clock.active.apause(self._wait)
        except BaseException:
            self.error = None
            raise
        self.n += 1
        self._state = READY_SLOW

    # The body

    def __enter__(self) -> Attempt:
        if self._state == READY:
            self._state = INSIDE
            return self
        if self._state == FAILED and not self._loop:
            self._pause()
        self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if kind is None and self._state == INSIDE:
            self.ok = True
            self._state = DONE
            return False
        return self._leave(kind, error, traceback)

    async def __aenter__(self) -> Attempt:
        if self._state == FAILED and not self._loop:
            await self._apause()
        self._asynchronous = True
        if self._state == READY:
            self._state = INSIDE
        else:
            self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return self.__exit__(kind, error, traceback)

    def _enter(self) -> None:
        if self._state != READY_SLOW:
            self._misused()
        if self._policy._timed:
            now = clock.active.read()
            if self.n == 1:
                self._begin(now)
            self._stop = self._allow(now)
            self._token = current.set(self._stop)
            self._alarm = None
            if self._asynchronous and self._stop is not None:
                self._alarm = alarm(self._stop)
        self._state = INSIDE_SLOW

    def _misused(self) -> NoReturn:
        if self._loop:
            raise RuntimeError(
                "`with attempt:` stands once in the body of a retry loop; put all that is retried into it, "
                "and leave by `break` or `return`"
            )
        raise RuntimeError(
            "this run is over: leave `while True: with run:` by `break` or `return` inside the block"
        )

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        timeout: TimeoutError | None = None
        if self._policy._timed:
            if self._token is not None:
                current.reset(self._token)
                self._token = None
            if self._alarm is not None:
                if self._alarm.off(kind, error, traceback):
                    timeout = self._timeout()
                self._alarm = None
        if timeout is not None:
            if self._failed(timeout, within=self._stop == self._end, each=self._stop != self._end):
                return True
            if self._quiet:
                return True
            try:
                raise timeout from error
            finally:
                del timeout  # the frame of this line is in its traceback
        if error is None:
            self._succeeded()
            return False
        if not isinstance(error, Exception):
            self.error = None
            self._state = ENDED
            return False
        return self._failed(error) or (self._quiet and self.error is not None)

    # The run: the faces that have no block call these

    def _begin(self, now: float) -> None:
        """Start the clock of the run."""
        self._start = now
        within = self._policy.within
        self._end = earliest(None if within is None else now + within, current.get())

    def _allow(self, now: float) -> float | None:
        """The deadline of the attempt that starts now."""
        each = self._policy.each
        return earliest(self._end, None if each is None else now + each)

    def _timeout(self) -> TimeoutError:
        """The error of an attempt that was stopped at its deadline."""
        policy = self._policy
        if self._stop != self._end:
            return TimeoutError(f"{policy._label}: the attempt took longer than each={policy.each:g} s")
        return TimeoutError(f"{policy._label}: the run took longer than its deadline allows")

    def _failed(self, error: Exception, *, each: bool = False, within: bool = False) -> bool:
        """Decide what follows a failure. True: a retry is scheduled; False: the run is over.

        `each`, `within`: the error is a timeout that the engine made for that deadline.
        """
        policy = self._policy
        self.error = None
        if not (each or within or policy._covers(error)):
            self._state = ENDED
            return False
        now = clock.active.read()
        if policy._timed:
            end = self._end
        else:
            end = current.get()
            if self.n == 1:
                self._start = now
        elapsed = now - self._start
        limit = earliest(policy.attempts, clock.active.attempts)
        wait = 0.0
        reason: str | None = None
        if limit is not None and self.n >= limit:
            reason = "attempts"
        elif within:
            reason = "within"
        else:
            wait = policy._waits(self.n, error)
            if end is not None and now + wait >= end:
                reason = "within"
            elif policy.budget is not None and not policy.budget.spend():
                reason = "budget"
        if reason is not None:
            self._give_up(error, elapsed, reason)
            return False
        fire(policy.hooks, Event("retry", policy._label, self.n, error, wait, elapsed, None))
        self.error = error  # only now: a Ctrl-C in a hook must not leave it here
        self._wait = wait
        self._state = FAILED
        return True

    def _give_up(self, error: Exception, elapsed: float, reason: str) -> None:
        """End the run in failure: the note, the event, and no error kept unless the run is quiet."""
        policy = self._policy
        annotate(error, f"{NOTE}{attempts(self.n)} in {elapsed:.1f} s ({reason})")
        if isinstance(error, Rejected):
            error.spent = True
        self.error = error if self._quiet else None
        self._state = ENDED
        fire(policy.hooks, Event("gave-up", policy._label, self.n, error, None, elapsed, reason))

    def _succeeded(self) -> None:
        """End the run in success."""
        self.ok = True
        self.error = None
        self._state = DONE
        if self.n > 1:
            policy = self._policy
            elapsed = clock.active.read() - self._start
            fire(policy.hooks, Event("recovered", policy._label, self.n, None, None, elapsed, None))


def rescue(policy: Retry, error: Exception) -> Attempt | None:
    """The run of a first attempt that failed with `error`, on its way to the second; None: it is over."""
    run = Attempt(policy, INSIDE, False, False)
    return run if run._failed(error) else None


def annotate(error: Exception, note: str) -> None:
    """Add our note, in place of one that an earlier run left on the same object."""
    # An exception class may refuse new attributes: that must not hide the error itself.
    with contextlib.suppress(Exception):
        notes = getattr(error, "__notes__", None)
        if notes is not None:
            notes[:] = [old for old in notes if not old.startswith(NOTE)]
        error.add_note(note)
