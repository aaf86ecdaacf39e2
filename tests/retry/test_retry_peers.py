"""tenacity and stamina on the same script: the same attempts, the same type of the error."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from lmlab.retry import Retry
from lmlab.retry.testing import testing

stamina = pytest.importorskip("stamina")
tenacity = pytest.importorskip("tenacity")

pytestmark = pytest.mark.peer


@pytest.fixture
def no_sleep() -> Iterator[None]:
    with testing():
        stamina.set_testing(True, attempts=100, cap=True)
        yield
        stamina.set_testing(False)


def outcome(
    decorate: Callable[..., Callable[[], int]], script: list[type[Exception] | None]
) -> tuple[int, object]:
    tries = 0

    def body() -> int:
        nonlocal tries
        step = script[min(tries, len(script) - 1)]
        tries += 1
        if step is not None:
            raise step
        return 1

    try:
        return tries, (decorate(body)(), tries)
    except Exception as error:
        return tries, type(error)


def test_peers_take_the_same_attempts(no_sleep: None) -> None:
    rng = random.Random(0)
    for _ in range(200):
        attempts = rng.randint(1, 6)
        script = [
            rng.choice([None, OSError, OSError, OSError, FileNotFoundError, KeyError]) for _ in range(7)
        ]
        ours = outcome(Retry(OSError, attempts=attempts, hooks=()), script)
        theirs = outcome(
            tenacity.retry(
                retry=tenacity.retry_if_exception_type(OSError),
                stop=tenacity.stop_after_attempt(attempts),
                sleep=lambda seconds: None,
                reraise=True,
            ),
            script,
        )
        assert ours == theirs
        assert ours == outcome(stamina.retry(on=OSError, attempts=attempts, timeout=None), script)
