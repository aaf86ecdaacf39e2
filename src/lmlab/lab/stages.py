"""A stage that is done is not done again: content keys, directories that appear whole, one run at a time.

The key of a stage is the SHA-256 of what goes into it: its name, the version of its code, the settings that
it reads, the keys of the stages before it and the SHA-256 of the files that it reads. No path, time or thread
count is in it, so a moved corpus or a slower machine changes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from lmlab.retry import Retry, atomic_write, disk

KEY_DIGITS = 12  # of the key, in the directory's name
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")  # `atomic_write`'s name for what isn't whole yet


class Busy(RuntimeError):
    """Another run holds the directory and the caller doesn't want to wait."""


@dataclass(frozen=True)
class Stage:
    """What a stage depends on. `inputs`: keys of earlier stages; `files`: SHA-256 of files, in order."""

    name: str
    settings: Mapping[str, Any]
    inputs: Sequence[str] = ()
    files: Sequence[str] = ()
    version: int = 1
    variant: str | None = None  # not in the key: two variants that agree share the work
    seed: int = 0  # not in the key either: a seed that matters is in the settings
    key: str = field(init=False)

    def __post_init__(self) -> None:
        parts = [self.name, self.version, self.settings, list(self.inputs), list(self.files)]
        object.__setattr__(self, "key", hashlib.sha256(canonical(parts)).hexdigest())

    @property
    def directory(self) -> str:
        return f"{self.name}-{self.key[:KEY_DIGITS]}"


@dataclass(frozen=True)
class Done:
    """A finished stage: where it lies and what it found."""

    stage: Stage
    path: Path
    result: dict[str, Any]
    seconds: float
    reused: bool


def canonical(value: Any) -> bytes:
    """JSON in one way only: sorted keys, no blanks, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def finite(value: Any) -> Any:
    """`value` with every number that JSON doesn't know (nan, inf) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, whole or not at all."""
    with atomic_write(path, "w", encoding="utf-8") as file:
        json.dump(finite(value), file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(run: Path, stage: Stage) -> Done | None:
    """The finished directory of `stage` in `run`, if there is one that is whole."""
    path = run / "stages" / stage.directory
    try:
        told = json.loads((path / "stage.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or told.get("key") != stage.key:
        return None
    return Done(stage, path, told["result"], float(told["seconds"]), reused=True)


def perform(
    run: Path,
    stage: Stage,
    work: Callable[[Path], dict[str, Any]],
    *,
    scratch: str | None = None,
    retry: Retry | None = None,
) -> Done:
    """Do `stage` unless it is done: `work(directory)` fills the directory and returns the stage's result.

    The directory is a temporary one beside its final name, which it gets, fsynced, when the work is whole.
    scratch: the name, inside it, of what a killed run of the same key leaves for the next one (checkpoints);
    it is removed when the stage stands, not before. Without it a stage begins with an empty directory, and an
    exception removes the temporary one. retry: the policy of the last step, from the whole work to the name.
    """
    done = find(run, stage)
    if done is not None:
        drop(done, scratch)  # the run before was killed just before it did
        return done
    resumable = scratch is not None
    final = run / "stages" / stage.directory
    temporary = run / "stages" / f".tmp-{stage.directory}"
    if not resumable:
        shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True, exist_ok=True)
    clear_temporaries(temporary)
    start = perf_counter()
    try:
        result = finite(work(temporary))
        seconds = perf_counter() - start
        (retry or disk()).call(put_in_place, temporary, final, describe(stage, result, seconds), scratch)
        _sync_directory(final.parent)
    except BaseException as error:
        if not resumable:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(final)  # "No space left on device" without a name helps nobody
        raise
    done = Done(stage, final, result, seconds, reused=False)
    drop(done, scratch)
    return done


def put_in_place(temporary: Path, final: Path, told: dict[str, Any], scratch: str | None) -> None:
    """Say in stage.json what was found, and give the directory its name."""
    write_json(temporary / "stage.json", told)
    sync(temporary, scratch)
    if final.exists():  # a damaged one: find() refused it
        shutil.rmtree(final)
    temporary.rename(final)


def clear_temporaries(directory: Path, pattern: str = "**/.*.tmp") -> None:
    """Remove what `atomic_write` left in `directory` when it was killed. Nobody else may be writing there."""
    for path in directory.glob(pattern):
        if TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def drop(done: Done, scratch: str | None) -> None:
    """Remove what only an unfinished stage needs."""
    if scratch is not None:
        shutil.rmtree(done.path / scratch, ignore_errors=True)


def describe(stage: Stage, result: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What stage.json says."""
    return {
        "stage": stage.name,
        "variant": stage.variant,
        "seed": stage.seed,
        "key": stage.key,
        "code_version": stage.version,
        "settings": stage.settings,
        "inputs": list(stage.inputs),
        "files": list(stage.files),
        "seconds": round(seconds, 3),
        "result": result,
    }


def sync(directory: Path, scratch: str | None = None) -> None:
    """fsync every file and directory below `directory`, so that a rename never shows an empty shell."""
    for root, below, files in os.walk(directory):
        if scratch is not None and scratch in below and Path(root) == directory:
            below.remove(scratch)  # it is removed next
        for name in files:
            descriptor = os.open(Path(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_directory(Path(root))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(run: Path, *, wait: bool = True, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """One run at a time in `run`. The kernel frees the lock when its holder dies, by SIGKILL too."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(32).strip() or "unknown"
            if not wait:
                raise Busy(f"{run} is in use by process {holder}") from None
            say(f"{run} is in use by process {holder}; waiting for it to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        try:
            file.truncate()
            os.write(
                file.fileno(), f"{os.getpid()}\n".encode()
            )  # a buffer would try, and fail, again at the end
        except OSError as error:
            error.filename = str(run / ".lock")  # of a write the system names no file
            raise
        yield
