"""Retry storms and herds, simulated: what policies do to one server that is slow for a while.

`python -m lmlab.benchmarks.retry_storm FOLDER` writes the storm as a figure (SVG) and its numbers (CSV).

The storm. Calls arrive at random (Poisson) at `load` times what the server can do. It works off a queue of
bounded length, first come first served; where the queue is full it refuses at once. A client that waits
longer than its patience counts the attempt as failed, but the server does not know and works it off all the
same: the reason why such a storm feeds itself (a metastable failure). During the outage the server works at
a quarter of its speed. The herd: all clients fail at the same moment, and come back.
"""

from __future__ import annotations

import csv
import heapq
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO

from lmlab.lab.bench import Row, benchmark
from lmlab.retry import Budget, atomic_write, backoff
from lmlab.retry import wait as waits

Wait = Callable[[int, Exception], float]
_FAILED = TimeoutError()


@dataclass(frozen=True)
class Policy:
    """A name, retries at most, the wait, and a maker of budgets: each course needs a fresh one."""

    name: str
    retries: int
    wait: Wait
    budget: Callable[[], Budget] | None = None


def policies() -> list[Policy]:
    """The five that are compared."""
    still = backoff(0.1, cap=10, jitter=False)
    jitter = backoff(0.1, cap=10)
    return [
        Policy("no retry", 0, still),
        Policy("at once, 3 times", 3, lambda n, error: 0.0),
        Policy("exponential, 3 times", 3, still),
        Policy("full jitter, 3 times", 3, jitter),
        Policy("full jitter, 3 times, budget 0.1", 3, jitter, lambda: Budget(0.1, burst=1)),
    ]


@dataclass(frozen=True)
class Server:
    """Requests a second, length of the queue, and the outage; all times in seconds."""

    rate: float = 200.0
    queue: int = 2000
    load: float = 0.8
    outage: tuple[float, float] = (20.0, 50.0)
    outage_speed: float = 0.25
    patience: float = 2.0
    ends: float = 170.0


@dataclass
class Course:
    """What happened in each second, and in all."""

    policy: str
    attempts: list[int]
    good: list[int]  # calls answered in time
    arrived: list[int]
    calls: int = 0
    total: int = 0
    since: tuple[int, int] = field(default=(0, 0))  # (calls, attempts) from the start of the outage
    recovered: float | None = None  # seconds from the end of the outage; None: never

    @property
    def amplification(self) -> float:
        """Attempts a call, from the start of the outage on."""
        calls, attempts = self.since
        return attempts / calls


@dataclass(slots=True)
class _Request:
    arrived: float
    n: int  # number of the attempt
    answered: bool = False  # in time


def storm(policy: Policy, server: Server = Server(), *, seed: int = 0) -> Course:
    """One course of the server under one policy; the same seed gives the same arrivals to all policies."""
    arrivals, service = random.Random(seed), random.Random(seed + 1)
    waits._stream = random.Random(seed)  # the jitter's private stream: a figure must come out again
    budget = None if policy.budget is None else policy.budget()
    seconds = int(server.ends)
    course = Course(policy.name, [0] * seconds, [0] * seconds, [0] * seconds)
    begun, over = server.outage
    calls_before = attempts_before = 0
    retries: list[tuple[float, int, int]] = []  # a heap of (time, order, number of the attempt)
    order = 0
    queue: deque[_Request] = deque()
    patient: deque[_Request] = deque()  # whose clients still wait, or were answered; in the order of arrival
    free_at = 0.0  # when the server is done with what it has begun
    next_call = arrivals.expovariate(server.rate * server.load)

    def fail(now: float, n: int) -> None:
        nonlocal order
        if n <= policy.retries and (budget is None or budget.spend()):
            order += 1
            heapq.heappush(retries, (now + policy.wait(n, _FAILED), order, n + 1))

    while True:
        # What happens next: a call, a retry, a client's patience ends, or the server takes a request.
        now, what = next_call, "call"
        if retries and retries[0][0] < now:
            now, what = retries[0][0], "retry"
        if patient and patient[0].arrived + server.patience < now:
            now, what = patient[0].arrived + server.patience, "timeout"
        if queue and max(free_at, queue[0].arrived) <= now:
            now, what = max(free_at, queue[0].arrived), "serve"
        if now >= server.ends:
            break
        if what == "serve":
            request = queue.popleft()
            speed = server.rate * (server.outage_speed if begun <= now < over else 1.0)
            free_at = now + service.expovariate(speed)
            request.answered = free_at - request.arrived <= server.patience
            if request.answered and free_at < server.ends:
                course.good[int(free_at)] += 1
            continue
        if what == "timeout":
            request = patient.popleft()
            if not request.answered:
                fail(now, request.n)
            continue
        if what == "call":
            n = 1
            next_call = now + arrivals.expovariate(server.rate * server.load)
            course.calls += 1
            course.arrived[int(now)] += 1
            if budget is not None:
                budget.begin()
        else:
            _, _, n = heapq.heappop(retries)
        course.total += 1
        course.attempts[int(now)] += 1
        if now < begun:
            calls_before, attempts_before = course.calls, course.total
        if len(queue) >= server.queue:
            fail(now, n)
        else:
            request = _Request(now, n)
            queue.append(request)
            patient.append(request)
    course.since = (course.calls - calls_before, course.total - attempts_before)
    course.recovered = _recovery(course, int(over))
    return course


def _recovery(course: Course, over: int) -> float | None:
    """Seconds from the end of the outage until 95 % of the calls are answered in time, for 5 s on end."""
    for second in range(over, len(course.good) - 4):
        good, arrived = sum(course.good[second : second + 5]), sum(course.arrived[second : second + 5])
        if good >= 0.95 * arrived:
            return float(second - over)
    return None


@dataclass(frozen=True)
class Herd:
    """Calls a client until all were admitted, and the time in units of the least that is possible."""

    calls: float
    floors: float


def herd(wait: Wait, *, clients: int = 1000, admitted: int = 2, window: float = 0.01, seed: int = 0) -> Herd:
    """All clients come at the same moment; the server admits a few in each window and refuses the others."""
    waits._stream = random.Random(seed)
    events = [(0.0, client, 1) for client in range(clients)]
    inside: dict[int, int] = {}
    calls, last = 0, 0.0
    while events:
        now, client, n = heapq.heappop(events)
        calls += 1
        slot = int(now / window)
        if inside.get(slot, 0) < admitted:
            inside[slot] = inside.get(slot, 0) + 1
            last = now
        else:
            heapq.heappush(events, (now + wait(n, _FAILED), client, n + 1))
    return Herd(calls / clients, last / (clients / admitted * window))


@benchmark("retry")
def rows(quick: bool) -> Iterator[Row]:
    """The five policies of the storm, and the herd."""
    server = Server(outage=(3.0, 6.0), ends=20.0) if quick else Server()
    plain = None
    for policy in policies():
        course = storm(policy, server)
        plain = plain or course
        back = "never" if course.recovered is None else f"after {course.recovered:.0f} s"
        yield Row(
            f"storm, {policy.name}: attempts a call",
            "no retry",
            ours=course.amplification,
            theirs=plain.amplification,
            unit="x",
            ratio=course.amplification / plain.amplification,
            target="<= 1.1" if policy.budget else "",
            note=f"recovered {back}",
        )
    clients = 50 if quick else 1000
    herds = [herd(backoff(), clients=clients, seed=seed) for seed in range(3 if quick else 15)]
    still = herd(backoff(jitter=False), clients=clients)
    calls, floors = median(one.calls for one in herds), median(one.floors for one in herds)
    yield Row("herd: calls a client", "no jitter", calls, still.calls, unit="", ratio=calls, target="<= 6.5")
    yield Row(
        "herd: time, in floors", "no jitter", floors, still.floors, unit="", ratio=floors, target="<= 3"
    )


def write(folder: Path, courses: list[Course], server: Server = Server()) -> None:
    """The figure `retry_storm.svg` and the numbers `retry_storm.csv`."""
    with atomic_write(folder / "retry_storm.csv", "w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["policy", "second", "calls", "attempts", "answered_in_time"])
        for course in courses:
            rows = zip(course.arrived, course.attempts, course.good, strict=True)
            table.writerows([course.policy, second, *row] for second, row in enumerate(rows))
    with atomic_write(folder / "retry_storm.svg", "w") as file:
        draw(file, courses, server)


def draw(file: IO[str], courses: list[Course], server: Server) -> None:
    """Attempts a second and calls answered in time, against time."""
    import matplotlib
    from matplotlib.figure import Figure

    colours = ["#555555", "#D55E00", "#E69F00", "#0072B2", "#009E73"]  # Okabe and Ito: for all eyes
    with matplotlib.rc_context({"svg.hashsalt": "retry", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 5.5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for course, colour in zip(courses, colours, strict=True):
            width = 2.2 if "budget" in course.policy else 1.2
            smooth = [_mean(course.attempts, k) for k in range(len(course.attempts))]
            above.plot(smooth, color=colour, lw=width, label=course.policy)
            below.plot([_mean(course.good, k) for k in range(len(course.good))], color=colour, lw=width)
        for axes in (above, below):
            axes.axvspan(*server.outage, color="#eeeeee", zorder=0)
            axes.set_xlim(0, server.ends)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        above.axhline(server.rate, color="black", lw=0.8, ls=":")
        above.set_ylabel("attempts a second")
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
        below.set_ylabel("calls answered in time, a second")
        below.set_xlabel("seconds (grey: the server works at a quarter of its speed; dotted: what it can do)")
        figure.savefig(file, format="svg", metadata={"Date": None})


def _mean(counts: list[int], k: int) -> float:
    """Mean of up to five seconds around k, so that the lines can be told apart."""
    around = counts[max(0, k - 2) : k + 3]
    return sum(around) / len(around)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    found = [storm(policy) for policy in policies()]
    for one in found:
        back = "never" if one.recovered is None else f"{one.recovered:.0f} s"
        print(f"{one.policy:34s} {one.amplification:5.2f} attempts a call, recovered after {back}")
    write(target, found)
