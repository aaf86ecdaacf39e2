"""Files that are whole or not there: write to a temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from contextlib import AbstractContextManager
from types import TracebackType
from typing import IO, Any, Literal, overload


@overload
def atomic_write(
    path: str | os.PathLike[str], mode: Literal["wb"] = "wb", *, encoding: None = None, fsync: bool = True
) -> AbstractContextManager[IO[bytes]]: ...
@overload
def atomic_write(
    path: str | os.PathLike[str], mode: Literal["w"], *, encoding: str | None = None, fsync: bool = True
) -> AbstractContextManager[IO[str]]: ...
@overload
def atomic_write(
    path: str | os.PathLike[str], mode: str = "wb", *, encoding: str | None = None, fsync: bool = True
) -> AbstractContextManager[IO[Any]]: ...
def atomic_write(
    path: str | os.PathLike[str], mode: str = "wb", *, encoding: str | None = None, fsync: bool = True
) -> AbstractContextManager[IO[Any]]:
    """Write a file so that `path` holds the old bytes or all the new ones, whatever happens on the way.

    `mode` is "wb" or "w" (then `encoding`, by default UTF-8). The bytes go to `.<name>.<random>.tmp` beside
    the target; at the end of the block they are flushed and fsynced, the file takes the target's name, and
    the directory is fsynced (`fsync=False` leaves both out: whole after a killed process, not after a power
    cut). On any exception, Ctrl-C too, the temporary file is removed and the exception passes; an OSError of
    the writing gets the name of the file.
    Permissions are the existing target's, else 0666 & ~umask. A symlink keeps pointing: its target is
    replaced.

    Raises `ValueError` for another mode, `FileNotFoundError` where the directory is missing.
    """
    if mode not in ("wb", "w"):
        raise ValueError(
            f"mode: expected 'wb' or 'w', got {mode!r}; an atomic write makes a whole new file. "
            "Right: atomic_write(path, 'wb')"
        )
    if mode == "wb" and encoding is not None:
        raise ValueError(f"encoding: only for mode 'w', got {encoding!r} with mode 'wb'")
    return _AtomicFile(os.fspath(path), mode, encoding or ("utf-8" if mode == "w" else None), fsync)


# What a write through a descriptor fails with: of all of them the system says no file.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _name(error: BaseException, path: str) -> None:
    """ "No space left on device" says no more than that: say which file couldn't be written."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = path


class _AtomicFile(AbstractContextManager[IO[Any]]):
    def __init__(self, path: str, mode: str, encoding: str | None, fsync: bool) -> None:
        self._path, self._mode, self._encoding, self._fsync = path, mode, encoding, fsync
        self._file: IO[Any] | None = None

    def __enter__(self) -> IO[Any]:
        if self._file is not None:
            raise RuntimeError("an atomic_write is for one `with` block; call atomic_write again")
        self._target = os.path.realpath(self._path)
        self._permissions = _permissions(self._target)
        directory, name = os.path.split(self._target)
        self._directory = directory
        # A name may have 255 bytes, and the temporary one is longer than the target's.
        stem = os.fsdecode(os.fsencode(name)[:200])
        self._temporary = os.path.join(directory, f".{stem}.{os.urandom(8).hex()}.tmp")  # noqa: PTH118
        flags = (
            os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        )
        # A new file gets 0666 & ~umask from the system; a copy of a private one is never open to others.
        self._descriptor = os.open(self._temporary, flags, 0o666 if self._permissions is None else 0o600)
        try:
            # The descriptor stays ours: a body that closes the file is still flushed and fsynced below.
            self._file = os.fdopen(self._descriptor, self._mode, encoding=self._encoding, closefd=False)
        except BaseException:
            os.close(self._descriptor)
            self._remove()
            raise
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._file is not None
        if kind is not None:
            if isinstance(error, OSError) and error.errno in _OF_WRITING:
                _name(error, self._path)
            # The error of the body is the news; that the rest could not be flushed is not.
            with contextlib.suppress(Exception):
                self._file.close()
            os.close(self._descriptor)
            self._remove()
            return
        try:
            try:
                self._file.close()  # flushes
                if self._permissions is not None:
                    os.chmod(self._temporary, self._permissions)  # noqa: PTH101
                if self._fsync:
                    os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)
            os.replace(self._temporary, self._target)  # noqa: PTH105
        except BaseException as failure:
            _name(failure, self._path)
            self._remove()
            raise
        if self._fsync:
            _fsync_directory(self._directory)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)  # noqa: PTH108


def _permissions(target: str) -> int | None:
    """The permission bits of an existing target; None for a new one. Other things than files are refused."""
    try:
        found = os.lstat(target)
    except FileNotFoundError:
        directory = os.path.dirname(target)  # noqa: PTH120
        if not os.path.isdir(directory):  # noqa: PTH112
            raise FileNotFoundError(errno.ENOENT, "no such directory to write into", directory) from None
        return None
    if stat.S_ISLNK(found.st_mode):  # realpath leaves only a loop of links unresolved
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), target)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"path: {target!r} is a device, pipe or socket; only a regular file can be replaced")
    return stat.S_IMODE(found.st_mode)


def _fsync_directory(directory: str) -> None:
    """Make the new name last. Not every file system, and not Windows, can fsync a directory."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            _name(error, directory)
            raise
    finally:
        os.close(descriptor)
