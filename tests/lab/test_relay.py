"""The progress of work in other processes: shown by the first one, never in the way of the work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmlab.lab import relay
from lmlab.lab.progress import Advance, Display
from lmlab.lab.relay import Relay, followed


class Seen(Display):
    """A display that only remembers."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.told: list[tuple[object, ...]] = []

    @contextmanager
    def work(self, name: str, total: int | None = None) -> Iterator[Advance]:
        self.told.append(("begin", name, total))
        yield lambda done, note="": self.told.append((name, done, note))
        self.told.append(("end", name))


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_is_reported_is_shown_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_EVERY", 0.01)
    seen, path = Seen(), tmp_path / "progress"
    with followed(path, seen):
        with Relay(path).work("a", 5) as a, Relay(path).work("b") as b:
            a(2, "loss 3")
            until(lambda: ("a", 2, "loss 3") in seen.told)
            b(1)
        with Relay(path).work("a", 5):  # after a kill: begun again
            pass
    assert not path.exists()
    begun, moved, ended = ("begin", "a", 5), ("a", 2, "loss 3"), ("end", "a")
    assert seen.told.index(begun) < seen.told.index(moved) < seen.told.index(ended)
    assert {("begin", "b", None), ("b", 1, ""), ("end", "b")} <= set(seen.told)


def test_a_bar_goes_on_where_the_work_is_begun_again(tmp_path: Path) -> None:
    seen, path = Seen(), tmp_path / "progress"
    with followed(path, seen):
        killed = Relay(path).work("a", 5)
        killed.__enter__()
        with Relay(path).work("a", 5):
            pass
    assert seen.told == [("begin", "a", 5), ("end", "a")]


def test_a_report_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    with Relay(tmp_path / "missing" / "progress").work("a", 2) as advance:
        advance(1)
    assert list(tmp_path.iterdir()) == []


def test_reports_are_not_made_faster_than_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    path.touch()
    with Relay(path).work("a", 10**6) as advance:
        for done in range(10_000):
            advance(done)
    assert len(path.read_text().splitlines()) < 30
