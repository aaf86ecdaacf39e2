"""`atomic_write`: the old bytes or the new ones, whatever fails and whenever the process is killed."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlab.retry import atomic_write, disk
from lmlab.retry.testing import testing

OLD, NEW = b"old bytes", b"new " * 5000


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def leftovers(path: Path) -> list[str]:
    return [other.name for other in path.parent.iterdir() if other.name != path.name]


def descriptors() -> int:
    """Open descriptors of this process, where the system tells."""
    return len(list(Path("/proc/self/fd").glob("*")))


def write(path: Path, pieces: int = 4) -> None:
    with atomic_write(path) as f:
        size = len(NEW) // pieces
        for k in range(pieces):
            f.write(NEW[k * size : (k + 1) * size])


class Faults:
    """Counts the system's calls of `atomic_write` and makes the k-th raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, k: int | None, error: BaseException) -> None:
        self.calls: list[str] = []
        self.k, self.error = k, error
        for name in ("open", "fsync", "replace", "chmod", "fdopen"):
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def step(self, name: str) -> None:
        self.calls.append(name)
        if self.k is not None and len(self.calls) == self.k + 1:
            raise self.error

    def wrap(self, name: str, f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.step(name)
            result = f(*args, **kwargs)
            return Faulty(result, self) if name == "fdopen" else result

        return call


class Faulty:
    """A file whose writes and flushing close may fail."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self.file, self.faults = file, faults

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self.file.write(data[:half])
        self.faults.step("write")
        return half + int(self.file.write(data[half:]))

    def close(self) -> None:
        if not self.file.closed:
            try:
                self.faults.step("flush")
            finally:
                self.file.close()


def steps() -> list[str]:
    return ["open", "fdopen", "write", "write", "write", "write", "flush", "chmod", "fsync", "replace"]


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "I/O error"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("k", range(12))
def test_a_fault_at_every_step(
    target: Path, monkeypatch: pytest.MonkeyPatch, k: int, error: BaseException
) -> None:
    before = descriptors()
    with monkeypatch.context() as patched:
        faults = Faults(patched, k, error)
        with pytest.raises(type(error)) as caught:
            write(target)
    assert caught.value is error and error.__cause__ is None
    assert faults.calls[: k + 1] == [*steps(), "open", "fsync"][: k + 1]
    # Up to `replace` the old bytes; after it (the directory's fsync) the new ones.
    assert target.read_bytes() == (OLD if k < 10 else NEW)
    assert leftovers(target) == []
    assert descriptors() == before


def test_no_fault_is_missed(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        faults = Faults(patched, None, OSError())
        write(target)
    assert faults.calls == [*steps(), "open", "fsync"]
    assert target.read_bytes() == NEW and leftovers(target) == []


def test_an_error_of_the_body_passes_untouched(target: Path) -> None:
    for error in (ValueError("mine"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as caught, atomic_write(target) as f:
            f.write(NEW)
            raise error
        assert caught.value is error and error.__context__ is None
        assert target.read_bytes() == OLD and leftovers(target) == []


def test_disk_retries_a_write(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with testing() as clock, monkeypatch.context() as patched:
        faults = Faults(patched, 8, OSError(errno.EIO, "I/O error"))
        for attempt in disk():
            with attempt:
                write(target)
    assert len(clock.sleeps) == 1 and faults.calls.count("replace") == 1
    assert target.read_bytes() == NEW and leftovers(target) == []


KILLED = """
import sys
from lmlab.retry import atomic_write
path, size = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
k = 0
while True:
    k += 1
    with atomic_write(path, fsync=k % 2 == 0) as f:
        for _ in range(16):
            f.write(bytes([k % 251]) * (size // 16))
"""


def test_a_killed_writer_leaves_a_whole_file(target: Path) -> None:
    size = 1 << 16
    target.write_bytes(bytes(size))
    rng = random.Random(3)
    seen = set()
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(target), str(size)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            # Wait for some progress, not for a time: a slow machine is killed in the middle as well.
            changes, before = rng.randrange(1, 8), target.stat().st_ino
            end = time.monotonic() + 20
            while changes and time.monotonic() < end:
                data = target.read_bytes()
                assert len(data) == size and len(set(data)) == 1
                if target.stat().st_ino != before:
                    changes, before = changes - 1, target.stat().st_ino
            writer.send_signal(signal.SIGKILL)
        data = target.read_bytes()
        assert len(data) == size and len(set(data)) == 1
        seen.add(data[0])
    assert len(seen) > 1


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_permissions(target: Path, umask: None) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    fresh = target.with_name("fresh")
    write(fresh)
    assert mode(fresh) == 0o640
    for bits in (0o600, 0o664, 0o755):
        target.chmod(bits)
        with atomic_write(target) as f:
            inside = [p for p in target.parent.iterdir() if p.name.startswith(".model.bin.")]
            assert len(inside) == 1 and inside[0].name.endswith(".tmp") and mode(inside[0]) == 0o600
            f.write(NEW)
        assert mode(target) == bits


def test_a_symlink_keeps_pointing(target: Path) -> None:
    link = target.parent.parent / "link"
    link.symlink_to(target)
    write(link)
    assert link.is_symlink() and target.read_bytes() == NEW
    dangling = target.parent.parent / "dangling"
    dangling.symlink_to(target.with_name("later"))
    write(dangling)
    assert dangling.is_symlink() and target.with_name("later").read_bytes() == NEW
    loop = target.parent / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links"):
        write(loop)


def test_text_and_long_names(tmp_path: Path) -> None:
    path = tmp_path / ("名" * 80)  # 240 bytes
    with atomic_write(path, "w") as f:
        f.write("字 é\n")
    assert path.read_bytes() == "字 é\n".encode()
    with atomic_write(path, "w", encoding="latin-1") as f:
        f.write("é")
    assert path.read_bytes() == b"\xe9"
    with atomic_write(str(path)) as g:
        g.write(b"x")
        g.close()  # a body may close the file
    assert path.read_bytes() == b"x"


def test_relative_paths_survive_a_change_of_folder(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(target.parent)
    with atomic_write("model.bin") as f:
        os.chdir("..")
        f.write(NEW)
    assert target.read_bytes() == NEW and leftovers(target) == []


@pytest.mark.bad_input
def test_bad_arguments(target: Path) -> None:
    for mode in ("r", "a", "w+", "x", "xb", "rb", "", "wt"):
        with pytest.raises(ValueError, match="mode: expected 'wb' or 'w', got"):
            atomic_write(target, mode)
    with pytest.raises(ValueError, match="encoding: only for mode 'w'"):
        atomic_write(target, "wb", encoding="utf-8")  # type: ignore[call-overload]
    with pytest.raises(FileNotFoundError, match="no such directory to write into"):
        write(target / ".." / ".." / "missing" / "x")
    with pytest.raises(IsADirectoryError):
        write(target.parent)
    fifo = target.with_name("fifo")
    os.mkfifo(fifo)
    with pytest.raises(ValueError, match="device, pipe or socket"):
        write(fifo)
    once = atomic_write(target)
    with once as f:
        f.write(NEW)
    with pytest.raises(RuntimeError, match="one `with` block"), once:
        pass
