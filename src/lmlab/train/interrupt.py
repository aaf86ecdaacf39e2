"""SIGTERM and SIGINT finish the step: the loop asks, saves, and then leaves with 143 or 130."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interruption:
    """`signal` is the number of the first signal that came, or 0."""

    def __init__(self) -> None:
        self.signal = 0

    def leave(self) -> NoReturn:
        """End as the signal asks: KeyboardInterrupt (exit 130 at the command line) or SystemExit(143)."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.signal)


@contextmanager
def interruptions() -> Iterator[Interruption]:
    """Hold SIGTERM and SIGINT back while the block runs (main thread only; elsewhere nothing is changed)."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def note(number: int, frame: FrameType | None) -> None:
        interruption.signal = interruption.signal or number

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
