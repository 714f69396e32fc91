"""SIGTERM and SIGINT: the first asks for a clean stop, the second ends the process at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

_HANDLED = (signal.SIGINT, signal.SIGTERM)


def _ignore() -> None:
    """Do nothing."""


@contextmanager
def stop_on_signals(stop: Callable[[signal.Signals], None], at_once: Callable[[], None] = _ignore) -> Iterator[None]:
    """Call ``stop`` at the first signal, in the running loop; exit with 128 + its number at the second.

    The second one ends the process even if the loop is blocked. Former handlers are put back at the end.

    Args:
        stop: takes the signal; called in the event loop, so it may touch what belongs to the loop.
        at_once: called at the first signal in the handler itself, between any two instructions of the main
            thread, so it must take no lock.
    """
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def begin(number: signal.Signals) -> None:
        log.info("%s: stopping; once more to end at once", number.name)
        stop(number)

    # Not loop.add_signal_handler, which needs the loop to run: a handler that blocks it would make us deaf.
    def on_signal(value: int, frame: FrameType | None) -> None:
        number = signal.Signals(value)
        if received:
            _end(128 + number, f"{number.name} again: the process ends now, without cleaning up")
        received.append(number)
        at_once()
        loop.call_soon_threadsafe(begin, number)

    former = {number: signal.signal(number, on_signal) for number in _HANDLED}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Watchdog:
    """Ends the process ``seconds`` after ``arm``, whatever its other threads do. It cannot be disarmed.

    Args:
        seconds: for how long the process may go on.
        code: its exit code then.
    """

    def __init__(self, seconds: float, code: int) -> None:
        self._seconds = seconds
        self._code = code
        self._armed: queue.SimpleQueue[None] = queue.SimpleQueue()  # its `put` is safe in a signal handler
        threading.Thread(target=self._watch, name="poolwire-watchdog", daemon=True).start()

    def arm(self) -> None:
        """Let the time begin."""
        self._armed.put(None)

    def _watch(self) -> None:
        self._armed.get()
        time.sleep(self._seconds)
        _end(self._code, f"the stop did not end within {self._seconds:g} s: the process ends now")


def _end(code: int, reason: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{reason}\n".encode())  # not by a logger: whoever was interrupted may hold its lock
    os._exit(code)
