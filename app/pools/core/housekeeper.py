"""Housekeeping: one thread per process calls each pool now and then, to close what is idle too long."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import Protocol

from app.pools.core import forks

log = logging.getLogger(__name__)


class Sweeper(Protocol):
    """Something that wants housekeeping."""

    def sweep(self) -> None:
        """Close what has expired. Must not block for long: all pools share the thread."""


class Housekeeper:
    """Calls each registered sweeper's ``sweep()`` every ``interval`` seconds, from one daemon thread.

    The thread runs while something is registered and sleeps on an event until the next sweep is due. Sweepers
    are held weakly: a pool that was dropped without ``stop()`` does not live on because of its housekeeping.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        # sweeper -> (interval in seconds, when it is due on the monotonic clock)
        self._schedule: weakref.WeakKeyDictionary[Sweeper, tuple[float, float]] = weakref.WeakKeyDictionary()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def register(self, sweeper: Sweeper, interval: float) -> None:
        """Call ``sweeper.sweep()`` every ``interval`` seconds from now on."""
        forks.register(self)
        with self._lock:
            self._schedule[sweeper] = (interval, time.monotonic() + interval)
            if not self.alive:
                self._thread = threading.Thread(target=self._run, name="poolwire-housekeeper", daemon=True)
                self._thread.start()
            self._wake.set()

    def unregister(self, sweeper: Sweeper) -> None:
        """Leave ``sweeper`` alone from now on; a sweep that runs at this moment ends first or soon after."""
        with self._lock:
            self._schedule.pop(sweeper, None)
            self._wake.set()

    def forget_after_fork(self) -> None:
        """Start again with a thread of the child's own, which the next ``register`` makes."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread = None
        self._schedule = weakref.WeakKeyDictionary()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._wake.clear()
                if not self._schedule:
                    self._thread = None
                    return
                now = time.monotonic()
                due = []
                for sweeper, (interval, when) in list(self._schedule.items()):
                    if when <= now:
                        due.append(sweeper)
                        self._schedule[sweeper] = (interval, now + interval)
                pause = min(when for _, when in self._schedule.values()) - now
            while due:
                self._sweep(due.pop())  # popped, so that no reference outlives its turn
            self._wake.wait(pause)

    @staticmethod
    def _sweep(sweeper: Sweeper) -> None:
        try:
            sweeper.sweep()
        except Exception:
            log.exception("housekeeping of %r failed; it is tried again at the next round", sweeper)


housekeeper = Housekeeper()
"""The process's housekeeper. It is idle, and has no thread, until a pool starts."""
