"""Which errors may pass: `caused_by` through chains, groups and cycles; `transient` by duck typing."""

from __future__ import annotations

import errno
import http.client
import io as stdlib_io
import pickle
import socket
import urllib.error
from types import SimpleNamespace
from typing import Any

import pytest

from lmlab.retry import Retry, caused_by, disk, transient
from lmlab.retry.testing import testing


def chained(outer: Exception, inner: BaseException, how: str) -> Exception:
    try:
        try:
            raise inner
        except BaseException as error:
            if how == "cause":
                raise outer from error
            if how == "context":
                raise outer  # noqa: B904
            raise outer from None
    except Exception as error:
        return error


@pytest.mark.parametrize(("how", "expected"), [("cause", True), ("context", True), ("hidden", False)])
def test_the_chain_is_followed_as_python_prints_it(how: str, expected: bool) -> None:
    on = caused_by(OSError)
    assert on(chained(RuntimeError(), OSError(5), how)) is expected
    assert on(chained(KeyError(), chained(RuntimeError(), OSError(5), "context"), how)) is expected
    assert not on(chained(RuntimeError(), KeyError(), how))


def test_cause_goes_before_context() -> None:
    error = chained(RuntimeError(), OSError(), "context")
    error.__cause__ = KeyError()
    assert not caused_by(OSError)(error) and caused_by(KeyError)(error)


def test_a_group_matches_when_every_leaf_does() -> None:
    on = caused_by(OSError)
    assert on(ExceptionGroup("all", [OSError(), chained(RuntimeError(), OSError(), "context")]))
    assert not on(ExceptionGroup("some", [OSError(), KeyError()]))
    assert on(ExceptionGroup("nested", [ExceptionGroup("all", [OSError()]), OSError()]))
    assert on(chained(RuntimeError(), ExceptionGroup("all", [OSError()]), "context"))
    same = OSError()
    assert on(ExceptionGroup("twice", [same, same]))
    shared = chained(RuntimeError(), OSError(), "context")
    assert on(ExceptionGroup("shared", [shared, chained(KeyError(), shared, "cause")]))
    assert caused_by(ExceptionGroup)(ExceptionGroup("itself", [KeyError()]))


def test_cycles_end() -> None:
    a, b = RuntimeError("a"), RuntimeError("b")
    a.__context__, b.__context__ = b, a
    assert not caused_by(OSError)(a) and caused_by(RuntimeError)(a)
    a.__cause__ = a
    assert not caused_by(OSError)(a)


@pytest.mark.parametrize("failures", [1, 10**6])
def test_what_torch_makes_of_a_broken_disk(failures: int) -> None:
    torch = pytest.importorskip("torch")
    left = failures

    class Broken(stdlib_io.BytesIO):
        def write(self, data: Any) -> int:
            nonlocal left
            left -= 1
            if left >= 0:
                raise OSError(errno.EIO, "I/O error")
            return super().write(data)

    with pytest.raises((RuntimeError, OSError)) as caught:
        torch.save({"a": torch.zeros(3)}, Broken())
    assert caused_by(OSError)(caught.value)
    policy = disk()
    assert callable(policy.on) and policy.on(caught.value)  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize(
    "name", ["EIO", "EAGAIN", "EBUSY", "ESTALE", "ETIMEDOUT", "EINTR", "ENOENT", "ENOSPC"]
)
def test_disk_retries_what_may_pass(name: str) -> None:
    tries = []

    def write() -> None:
        tries.append(1)
        raise OSError(getattr(errno, name), "text")

    with testing(), pytest.raises(OSError, match="text"):
        disk().call(write)
    assert len(tries) == (1 if name in ("ENOENT", "ENOSPC") else 4)


def status(**fields: Any) -> Exception:
    error = RuntimeError()
    for name, value in fields.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), True),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), False),
        (http.client.IncompleteRead(b""), True),
        (OSError(errno.ENETUNREACH, "unreachable"), True),
        (FileNotFoundError(), False),
        (urllib.error.URLError(ConnectionRefusedError()), False),  # the reason isn't in the chain by itself
        (urllib.error.HTTPError("u", 503, "busy", {}, None), True),  # type: ignore[arg-type]
        (urllib.error.HTTPError("u", 404, "gone", {}, None), False),  # type: ignore[arg-type]
        (ValueError(), False),
        *((status(status_code=code), True) for code in (408, 425, 429, 500, 502, 503, 504)),
        *((status(status=code), False) for code in (200, 400, 401, 404, 501)),
        (status(response=SimpleNamespace(status_code=429)), True),
        (status(code="503"), False),
        (status(code=7), False),
        (chained(status(code=404), ConnectionError(), "context"), False),
        (chained(RuntimeError(), ConnectionError(), "context"), True),
    ],
    ids=repr,
)
def test_transient(error: Exception, expected: bool) -> None:
    assert transient(error) is expected


def test_urlopen_wraps_what_it_catches() -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    import urllib.request

    handler = urllib.request.HTTPHandler()
    request = urllib.request.Request("http://localhost/")
    request.timeout = 1.0

    class Connection:
        timeout = 1

        def __init__(self, *_: object, **__: object) -> None: ...
        def set_debuglevel(self, level: int) -> None: ...
        def close(self) -> None: ...

        request = refuse

    with pytest.raises(urllib.error.URLError) as caught:
        handler.do_open(Connection, request)  # type: ignore[arg-type]
    assert transient(caught.value)


@pytest.mark.bad_input
def test_caused_by_names_classes() -> None:
    with pytest.raises(TypeError, match="types: expected exception classes, got 3"):
        caused_by(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"types: expected exception classes.*KeyboardInterrupt"):
        caused_by(KeyboardInterrupt)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at least one"):
        caused_by()


def test_policies_with_caused_by_are_values() -> None:
    io = Retry(caused_by(OSError, KeyError))
    assert pickle.loads(pickle.dumps(io)) == io and "caused_by(OSError, KeyError)" in repr(io)
    with testing(), pytest.raises(RuntimeError, match="x"):
        io.call(lambda: (_ for _ in ()).throw(chained(RuntimeError("x"), OSError(), "cause")))
