"""The rate at which one caller may send, kept by waiting and not by failing."""

from __future__ import annotations

import threading
import time


class Pacer:
    """Hands out turns at ``rate`` per second, after a burst, in the order in which they are asked for.

    The generic cell rate algorithm: one number, the time at which the next turn would be due without a burst.
    """

    __slots__ = ("_allowance", "_due", "_interval", "_lock")

    def __init__(self, rate: float, burst: int) -> None:
        self._lock = threading.Lock()
        self._interval = 1.0 / rate
        self._allowance = (burst - 1) * self._interval
        self._due = 0.0

    def reserve(self, deadline: float) -> float | None:
        """Take the next turn and return the seconds until it comes.

        Returns ``None``, and takes none, if it comes after ``deadline`` (monotonic seconds).
        """
        now = time.monotonic()
        with self._lock:
            due = max(self._due, now)
            turn = max(now, due - self._allowance)
            if turn >= deadline:
                return None
            self._due = due + self._interval
            return turn - now
