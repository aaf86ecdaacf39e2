"""Stages: keys that depend on what goes in and on nothing else, directories that appear whole, one run at a time."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.lab.journal import Journal, read_lines
from lmlab.lab.stages import Busy, Stage, canonical, find, finite, lock, perform

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), plain, min_size=2, max_size=5))
def test_a_key_does_not_depend_on_the_order_of_settings(settings: dict[str, Any]) -> None:
    turned = dict(reversed(settings.items()))
    assert Stage("train", settings).key == Stage("train", turned).key


@given(st.dictionaries(st.text(max_size=5), plain, max_size=3), st.text(max_size=5), plain)
def test_a_key_depends_on_every_setting(settings: Mapping[str, Any], key: str, value: Any) -> None:
    other = {**settings, key: value}
    same = canonical(dict(settings)) == canonical(other)
    assert (Stage("train", settings).key == Stage("train", other).key) == same


def test_a_key_depends_on_name_version_inputs_and_files_but_not_on_variant_and_seed() -> None:
    base = Stage("train", {"a": 1}, ["x"], ["f"])
    assert Stage("train", {"a": 1}, ["x"], ["f"], variant="v", seed=3).key == base.key
    others = [
        Stage("evaluate", {"a": 1}, ["x"], ["f"]),
        Stage("train", {"a": 2}, ["x"], ["f"]),
        Stage("train", {"a": 1}, ["y"], ["f"]),
        Stage("train", {"a": 1}, ["x"], ["g"]),
        Stage("train", {"a": 1}, ["x", "f"], []),
        Stage("train", {"a": 1}, ["x"], ["f"], version=2),
    ]
    assert len({base.key, *(other.key for other in others)}) == 7


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def work(directory: Path) -> dict[str, Any]:
        calls.append(directory)
        (directory / "file").write_text("x")
        return {"value": 1.5, "bad": float("nan")}

    stage = Stage("corpus", {"a": 1})
    first = perform(tmp_path, stage, work)
    second = perform(tmp_path, stage, work)
    assert len(calls) == 1 and not first.reused and second.reused
    assert first.path == second.path == tmp_path / "stages" / f"corpus-{stage.key[:12]}"
    assert second.result == first.result == {"value": 1.5, "bad": None}
    told = json.loads((first.path / "stage.json").read_text())
    assert told["key"] == stage.key and told["stage"] == "corpus" and told["settings"] == {"a": 1}
    assert [p.name for p in (tmp_path / "stages").iterdir()] == [stage.directory]


def test_a_stage_that_fails_leaves_nothing_and_earlier_ones_stay(tmp_path: Path) -> None:
    perform(tmp_path, Stage("corpus", {}), lambda directory: {})

    def fails(directory: Path) -> dict[str, Any]:
        (directory / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        perform(tmp_path, Stage("tokenize", {}), fails)
    assert [p.name.partition("-")[0] for p in (tmp_path / "stages").iterdir()] == ["corpus"]


def test_a_full_disk_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    def full(directory: Path) -> dict[str, Any]:
        (directory / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    stage = Stage("tokenize", {})
    with pytest.raises(OSError, match="No space left") as caught:
        perform(tmp_path, stage, full)
    assert caught.value.filename == str(tmp_path / "stages" / stage.directory)
    assert list((tmp_path / "stages").iterdir()) == []


def test_a_stage_with_scratch_finds_what_it_left_and_drops_it_when_it_stands(tmp_path: Path) -> None:
    def dies(directory: Path) -> dict[str, Any]:
        (directory / "checkpoints").mkdir()
        (directory / "checkpoints" / "step").write_text("7")
        raise KeyboardInterrupt

    stage = Stage("train", {})
    with pytest.raises(KeyboardInterrupt):
        perform(tmp_path, stage, dies, scratch="checkpoints")
    assert find(tmp_path, stage) is None

    def goes_on(directory: Path) -> dict[str, Any]:
        (directory / "model").write_text("x")
        return {"from": (directory / "checkpoints" / "step").read_text()}

    done = perform(tmp_path, stage, goes_on, scratch="checkpoints")
    assert done.result == {"from": "7"}
    assert sorted(p.name for p in done.path.iterdir()) == ["model", "stage.json"]
    # killed between the renaming and the dropping: the next run drops it
    (done.path / "checkpoints").mkdir()
    perform(tmp_path, stage, goes_on, scratch="checkpoints")
    assert not (done.path / "checkpoints").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "other"}', '{"stage": "corpus"}'])
def test_a_damaged_stage_is_done_again(damage: str, tmp_path: Path) -> None:
    stage = Stage("corpus", {})
    first = perform(tmp_path, stage, lambda directory: {"n": 1})
    (first.path / "stage.json").write_text(damage)
    assert find(tmp_path, stage) is None
    assert perform(tmp_path, stage, lambda directory: {"n": 2}).result == {"n": 2}


def test_numbers_that_json_does_not_know_are_null() -> None:
    assert finite({"a": [1.0, float("inf"), (float("nan"), "x")]}) == {"a": [1.0, None, [None, "x"]]}
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))


# --- one run at a time --------------------------------------------------------------------------------------


def _hold(run: str, holds: Any, release: Any) -> None:
    with lock(Path(run)):
        holds.set()
        release.wait(60)


def test_the_second_run_waits_with_a_message_or_is_told_that_the_first_is_busy(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    holds, release = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(str(tmp_path), holds, release))
    first.start()
    try:
        assert holds.wait(60)
        with pytest.raises(Busy, match=f"in use by process {first.pid}"), lock(tmp_path, wait=False):
            pass
        said: list[str] = []
        entered = threading.Event()

        def second() -> None:
            def say(text: str) -> None:
                said.append(text)
                release.set()  # the first one ends when the second has said that it waits

            with lock(tmp_path, say=say):
                entered.set()

        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(60)
        assert entered.is_set()
        assert said == [f"{tmp_path} is in use by process {first.pid}; waiting for it to end"]
    finally:
        release.set()
        first.join(60)


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    holds, release = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(str(tmp_path), holds, release))
    first.start()
    assert holds.wait(60)
    first.kill()
    first.join(60)
    with lock(tmp_path, wait=False):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


# --- the log ------------------------------------------------------------------------------------------------


def test_what_a_killed_write_left_is_no_part_of_a_stage(tmp_path: Path) -> None:
    """atomic_write's own name, so that a change of it is seen here; files of a user stay."""
    killed = (
        "import os, sys\nfrom lmlab.retry import atomic_write\nwith atomic_write(sys.argv[1]): os._exit(9)"
    )
    stage = Stage("train", {"steps": 1})
    left = tmp_path / "stages" / f".tmp-{stage.directory}" / "model" / "config.json"
    left.parent.mkdir(parents=True)
    assert subprocess.run([sys.executable, "-c", killed, str(left)]).returncode == 9
    (left.parent / ".notes.tmp").touch()
    assert len(list(left.parent.iterdir())) == 2
    done = perform(tmp_path, stage, lambda directory: {}, scratch="checkpoints")
    assert [path.name for path in (done.path / "model").iterdir()] == [".notes.tmp"]


def test_a_log_line_that_a_kill_cut_in_two_is_dropped(tmp_path: Path) -> None:
    log = Journal(tmp_path / "log.jsonl", variant="base")
    log.mend()
    log.write("train", "step", loss=float("inf"), text="\ud800 \u2028")
    with log.path.open("a") as file:
        file.write('{"stage": "train", "ev')
    log.mend()
    log.warn("train", "careful")
    rows = list(read_lines(log.path))
    assert [row["event"] for row in rows] == ["step", "warning"]
    assert rows[0]["loss"] is None and rows[0]["variant"] == "base" and rows[1]["text"] == "careful"
