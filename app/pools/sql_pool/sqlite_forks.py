"""SQLite and fork: a child must not open a file that was open in its parent when it was forked.

SQLite keeps the locks of a process in global variables. A child inherits them and believes that it holds the
parent's locks, although the kernel gives it none: it would write over others, or lose what it writes
(https://www.sqlite.org/howtocorrupt.html, section 2.6). So idle connections are closed just before a fork, which
costs the parent a fraction of a millisecond each; a file that is in use at that moment is refused in the child.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from typing import Any, Protocol

_CLOSING_SECONDS = 1.0
_PAUSE = 0.001


class Idle(Protocol):
    """A bucket of SQLite connections."""

    def clear(self) -> None:
        """Close what is idle."""

    def stats(self) -> dict[str, Any]:
        """Return the figures, ``active`` among them."""


class _Register:
    """The files that this process has open through the pool."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._hooked = False
        self._buckets: weakref.WeakSet[Idle] = weakref.WeakSet()
        self._open: dict[int, str] = {}
        self._inherited: set[str] = set()

    def add_bucket(self, bucket: Idle) -> None:
        """Have a bucket's idle connections closed before a fork."""
        with self._lock:
            if not self._hooked:
                os.register_at_fork(before=self._before, after_in_child=self._after_in_child)
                self._hooked = True
            self._buckets.add(bucket)

    def opened(self, connection: object, path: str) -> None:
        """Note that a connection has a file open.

        Raises:
            sqlite3.OperationalError: the file was in use when this process was forked.
        """
        real = os.path.realpath(path)
        if real in self._inherited:
            raise sqlite3.OperationalError(
                f"{real} was in use when this process was forked, and SQLite cannot open it safely here; "
                "fork while nothing is leased, or start processes by spawn"
            )
        with self._lock:
            self._open[id(connection)] = real

    def closed(self, connection: object) -> None:
        """Note that a connection is closed."""
        with self._lock:
            self._open.pop(id(connection), None)

    def _before(self) -> None:
        buckets = list(self._buckets)
        for bucket in buckets:
            bucket.clear()
        # aiosqlite's connections are closed by threads of their own; those that are leased stay open anyway.
        deadline = time.monotonic() + _CLOSING_SECONDS
        leased = sum(bucket.stats()["active"] for bucket in buckets)
        while len(self._open) > leased and time.monotonic() < deadline:
            time.sleep(_PAUSE)

    def _after_in_child(self) -> None:
        self._lock = threading.RLock()
        self._inherited |= set(self._open.values())
        self._open.clear()


register = _Register()
"""The process's register."""
