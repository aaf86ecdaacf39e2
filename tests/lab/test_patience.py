"""A disk that fails for a while: what is written again, what isn't, and the count of it in the log."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lmlab.lab.journal import Journal, read_lines
from lmlab.lab.options import RetryOptions
from lmlab.lab.patience import patience
from lmlab.lab.stages import Stage, find, perform
from lmlab.retry.testing import testing


def failing(monkeypatch: pytest.MonkeyPatch, name: str, times: int, number: int = errno.EIO) -> list[str]:
    """Let the function `name` of os fail that many times; the list fills with what it was called with."""
    real, calls = getattr(os, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(str(args[0]))
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return calls


def test_a_stage_is_put_in_place_again_but_its_work_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, stage, worked = Journal(tmp_path / "log.jsonl"), Stage("corpus", {}), []

    def work(directory: Path) -> dict[str, Any]:
        worked.append(directory)
        (directory / "text").write_text("x")
        return {"n": 1}

    failing(monkeypatch, "replace", times=2)  # of atomic_write: stage.json gets its name
    with testing(jitter=1.0) as clock, patience(RetryOptions(), journal, "corpus") as retry:
        done = perform(tmp_path, stage, work, retry=retry)
    assert len(worked) == 1 and find(tmp_path, stage) is not None
    assert sorted(p.name for p in done.path.iterdir()) == ["stage.json", "text"]
    (line,) = read_lines(tmp_path / "log.jsonl")
    assert (line["event"], line["stage"], line["name"]) == ("retries", "corpus", "put_in_place")
    assert (line["retries"], line["recovered"], line["gave_up"]) == (2, 1, 0)
    assert line["slept"] == pytest.approx(clock.now, abs=1e-3) and clock.now > 0


def test_giving_up_is_counted_and_the_error_is_the_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    failing(monkeypatch, "replace", times=99)
    with (
        pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught,
        testing(),
        patience(RetryOptions(attempts=3), journal, "corpus") as retry,
    ):
        perform(tmp_path, Stage("corpus", {}), lambda directory: {}, retry=retry)
    assert caught.value.errno == errno.EIO
    (line,) = read_lines(tmp_path / "log.jsonl")
    assert (line["retries"], line["recovered"], line["gave_up"]) == (2, 0, 1)


def test_a_full_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    calls = failing(monkeypatch, "replace", times=99, number=errno.ENOSPC)
    with pytest.raises(OSError, match="space"), patience(RetryOptions(), journal, None) as retry:
        perform(tmp_path, Stage("corpus", {}), lambda directory: {}, retry=retry)
    assert len(calls) == 1 and not journal.path.exists()
