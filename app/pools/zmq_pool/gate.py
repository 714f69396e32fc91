"""The gate before the requests of event loops: shut while the pool is paused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from app.pools.core.waiters import TaskWaiter


class Gate:
    """Holds tasks back, of whichever loop.

    Args:
        shut: says whether it is. Who shuts it needs to tell nobody, who opens it calls ``open``.
    """

    def __init__(self, shut: Callable[[], bool]) -> None:
        self._shut = shut
        self._lock = threading.RLock()  # a signal's handler that comes while its thread holds it may stop the pool
        self._waiters: set[TaskWaiter[None]] = set()

    async def passed(self, seconds: float) -> bool:
        """Wait until the gate is open, at most ``seconds``. Returns whether it is."""
        waiter: TaskWaiter[None] = TaskWaiter()
        deadline = time.monotonic() + seconds
        with self._lock:
            self._waiters.add(waiter)
        try:
            # Looked at with the waiter known: an opening that comes between the two wakes it.
            while self._shut():
                if not await waiter.wait(deadline - time.monotonic()):
                    return not self._shut()
            return True
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def open(self) -> None:
        """Let those who wait look again."""
        with self._lock:
            waiters = list(self._waiters)
        for waiter in waiters:
            waiter.wake()

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return len(self._waiters)
