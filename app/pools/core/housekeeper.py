"""Housekeeping: one thread per process calls each pool now and then, to close what is idle too long."""

from __future__ import annotations

import contextlib
import logging
import queue
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

    The thread runs while something is registered and sleeps until the next sweep is due, or is wanted now. Sweepers
    are held weakly: a pool that was dropped without ``stop()`` does not live on because of its housekeeping.
    """

    def __init__(self) -> None:
        # Re-entrant: a signal's handler that comes while its thread holds it may start or stop a pool.
        self._lock = threading.RLock()
        # Not an Event, whose lock a finaliser may find held by its own thread; `put` never waits.
        self._signals: queue.SimpleQueue[bool] = queue.SimpleQueue()
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
                thread = threading.Thread(target=self._run, name="poolwire-housekeeper", daemon=True)
                self._thread = thread
                thread.start()
            self._signals.put(False)

    def hurry(self) -> None:
        """Have everyone swept now. A finaliser may call this: it waits for nothing."""
        self._signals.put(True)

    def unregister(self, sweeper: Sweeper) -> None:
        """Leave ``sweeper`` alone from now on; a sweep that runs at this moment ends first or soon after."""
        with self._lock:
            self._schedule.pop(sweeper, None)
            self._signals.put(False)

    def forget_after_fork(self) -> None:
        """Start again with a thread of the child's own, which the next ``register`` makes."""
        self._lock = threading.RLock()
        self._signals = queue.SimpleQueue()
        self._thread = None
        self._schedule = weakref.WeakKeyDictionary()

    def _run(self) -> None:
        hurried = False
        while True:
            with self._lock:
                if self._thread is not threading.current_thread():  # a handler started another in between
                    return
                if not self._schedule:
                    self._thread = None
                    return
                due, pause = self._next(hurried)
            while due:
                self._sweep(due.pop())  # popped, so that no reference outlives its turn
            hurried = self._signalled(pause)

    def _next(self, hurried: bool) -> tuple[list[Sweeper], float]:
        """Return, under the lock, who is due, all of them if ``hurried``, and the seconds until somebody else is."""
        now = time.monotonic()
        due = []
        for sweeper, (interval, when) in list(self._schedule.items()):
            if hurried or when <= now:
                due.append(sweeper)
                self._schedule[sweeper] = (interval, now + interval)
        return due, min((when for _, when in self._schedule.values()), default=now) - now

    def _signalled(self, seconds: float) -> bool:
        """Wait for a signal, at most ``seconds``, and take all that are there. Returns whether one is in a hurry."""
        hurried = False
        with contextlib.suppress(queue.Empty):
            hurried = self._signals.get(timeout=max(0.0, seconds))
            while True:
                hurried = self._signals.get_nowait() or hurried
        return hurried

    @staticmethod
    def _sweep(sweeper: Sweeper) -> None:
        try:
            sweeper.sweep()
        except Exception:
            log.exception("housekeeping of %r failed; it is tried again at the next round", sweeper)


housekeeper = Housekeeper()
"""The process's housekeeper. It is idle, and has no thread, until a pool starts."""
