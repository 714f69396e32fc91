"""The writer lock: who may write to a SQLite database now.

SQLite has one writer at a time, and lets the others poll: under load some wait for seconds while others pass
them. Here they queue. Between threads of this process the queue is a bucket with one entry, fair as every
bucket; between processes it is a pair of file locks beside the database.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from contextlib import suppress

from app.pools.core import forks
from app.pools.core.bucket import Bucket, Entry, Limits
from app.pools.errors import PoolTimeout

_FAIR_AFTER = 0.01
_PAUSE = 0.0005
_GATE, _RIGHT = 0, 1
SUFFIX = "-writer"
"""What the lock file's name has more than the database's."""


class WriterLock:
    """The right to write to one database, for one connection at a time.

    Args:
        label: the database's name, for errors.
        path: the database's file, or ``None`` for one that only this process sees.
        timeout: seconds to wait for the right.
    """

    def __init__(self, label: str, path: str | None, timeout: float) -> None:
        self._label = label
        self._timeout = timeout
        self._bucket: Bucket[_Turnstile] = Bucket(
            "sql",
            f"the writer lock of {label}",
            Limits(capacity=1, checkout_timeout=timeout, fair_after=_FAIR_AFTER),
            create=lambda: _Turnstile(path),
            destroy=_Turnstile.close,
        )
        forks.register(self)

    def acquire(self) -> Entry[_Turnstile]:
        """Wait for the right to write, to be given back to ``release``.

        Raises:
            PoolTimeout: others wrote until the timeout; it tells who holds the right, if it is this process.
        """
        deadline = time.monotonic() + self._timeout
        turn = self._bucket.checkout()
        try:
            passed = turn.resource.enter(deadline)
        except BaseException:
            self._bucket.discard(turn)
            raise
        if not passed:
            self._bucket.give_back(turn)
            raise PoolTimeout(
                "sql",
                f"the writer lock of {self._label}",
                capacity=1,
                in_use=1,
                waiters=0,
                waited=self._timeout,
                longest_holder="another process",
            )
        return turn

    def release(self, turn: Entry[_Turnstile]) -> None:
        """Let the next one write."""
        turn.resource.leave()
        self._bucket.give_back(turn)

    def forget_after_fork(self) -> None:
        """Drop the parent's turn: the child queues by itself, with file descriptors of its own."""
        self._bucket.forget_after_fork()


class _Turnstile:
    """File locks between processes: a gate that one process at a time waits in, and the right itself.

    A process that has just written must pass the gate again, in which the longest waiting one stands: so it
    cannot take the right over and over while the others poll. The locks are POSIX record locks on two bytes
    of one file; they belong to the process, which is why ``writer_lock`` makes one lock for a path.
    """

    def __init__(self, path: str | None) -> None:
        self._file = -1
        if path is None:
            return
        # A file of its own: closing a descriptor of the database itself would drop SQLite's own locks on it.
        # Where it cannot be made, SQLite cannot write either, and says so better.
        with suppress(OSError):
            self._file = os.open(path + SUFFIX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def enter(self, deadline: float) -> bool:
        """Wait for the right until ``deadline`` (monotonic seconds); return whether it was had."""
        if self._file < 0:
            return True
        if not self._lock(_GATE, deadline):
            return False
        try:
            return self._lock(_RIGHT, deadline)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _GATE)

    def leave(self) -> None:
        """Give the right to the next process."""
        if self._file >= 0:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _RIGHT)

    def close(self) -> None:
        """Close the file, which unlocks it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self, byte: int, deadline: float) -> bool:
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except (BlockingIOError, PermissionError):  # POSIX allows either
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_PAUSE)
            else:
                return True


_locks: weakref.WeakValueDictionary[str, WriterLock] = weakref.WeakValueDictionary()
_locks_guard = threading.Lock()


def writer_lock(label: str, path: str | None, timeout: float) -> WriterLock:
    """Return the process's writer lock of a database, the same for every pool that has the file open.

    Args:
        label: the database's name, for errors.
        path: the database's file, or ``None`` for a lock of the caller's own.
        timeout: seconds to wait for the right, unless the lock exists already.
    """
    if path is None:
        return WriterLock(label, None, timeout)
    real = os.path.realpath(path)
    with _locks_guard:
        lock = _locks.get(real)
        if lock is None:
            lock = _locks[real] = WriterLock(label, real, timeout)
        return lock
