"""The writer lock: who may write to a SQLite database now.

SQLite has one writer at a time, and lets the others poll: under load some wait for seconds while others pass
them. Here they queue. Between threads of this process the queue is a bucket with one entry, fair as every
bucket; between processes it is a pair of file locks beside the database.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from threading import get_ident

from app.pools.core import forks
from app.pools.core.bucket import Bucket, Entry, Limits
from app.pools.core.waiters import Waiter
from app.pools.errors import PoolError, PoolTimeout
from app.pools.sql_pool.turnstile import Turnstile

_FAIR_AFTER = 0.01
_SETTING = "busy_timeout"
"""What a writer that waited too long may raise: there is one writer, whatever the number of connections."""


class WishTakenBack(PoolError):
    """Nobody wants to write any more on behalf of whom the lock was asked for."""


class Wish:
    """A connection's wish to write, which can be taken back from another thread while the connection waits."""

    __slots__ = ("taken_back", "waiter")

    def __init__(self) -> None:
        self.taken_back = False
        self.waiter: Waiter[Entry[Turnstile]] | None = None
        """Its place in the queue; the queue's lock guards it."""


class WriterLock:
    """The right to write to one database, for one connection at a time.

    Args:
        label: the database's name, for errors.
        path: the database's file, or ``None`` for one that only this process sees.
    """

    def __init__(self, label: str, path: str | None) -> None:
        self._label = label
        self._queue = _Queue(label, path)
        forks.register(self)

    def acquire(self, wish: Wish, timeout: float) -> Entry[Turnstile]:
        """Wait for the right to write, to be given back to ``release``.

        Args:
            wish: the connection's.
            timeout: seconds to wait.

        Raises:
            PoolTimeout: others wrote until the timeout; it tells who holds the right, if it is this process.
            WishTakenBack: ``take_back`` was called before the right was had.
        """
        deadline = time.monotonic() + timeout
        turn = self._queue.checkout_for(wish, timeout)
        try:
            passed = turn.resource.enter(deadline, wish)
        except BaseException:
            self._queue.discard(turn)
            raise
        if wish.taken_back:
            if passed:
                turn.resource.leave()
            self._queue.give_back(turn)
            raise WishTakenBack
        if not passed:
            self._queue.give_back(turn)
            raise PoolTimeout(
                "sql",
                f"the writer lock of {self._label}",
                capacity=1,
                in_use=1,
                waiters=0,
                waited=timeout,
                longest_holder="another process",
                setting=_SETTING,
            )
        return turn

    def release(self, turn: Entry[Turnstile]) -> None:
        """Let the next one write."""
        turn.resource.leave()
        self._queue.give_back(turn)

    def take_back(self, wish: Wish) -> None:
        """Have ``acquire`` fail at once for a wish, from any thread. Does not block."""
        wish.taken_back = True
        self._queue.send_away(wish)

    def rest(self) -> None:
        """Close the file now, or once nobody writes; whoever writes later opens it again."""
        self._queue.clear()

    def forget_after_fork(self) -> None:
        """Drop the parent's turn: the child queues by itself, with file descriptors of its own."""
        self._queue.forget_after_fork()


class _Queue(Bucket[Turnstile]):
    """The threads of this process that want to write, each of which can be sent away."""

    def __init__(self, label: str, path: str | None) -> None:
        super().__init__(
            "sql",
            f"the writer lock of {label}",
            Limits(capacity=1, fair_after=_FAIR_AFTER),
            create=lambda: Turnstile(path),
            destroy=Turnstile.close,
        )

    def _reset(self) -> None:
        super()._reset()
        self._wishes: dict[int, Wish] = {}  # by the thread that waits for it

    def checkout_for(self, wish: Wish, timeout: float) -> Entry[Turnstile]:
        """Do what ``checkout`` does, for a wish that may be taken back."""
        thread = get_ident()
        self._wishes[thread] = wish
        try:
            return self.checkout(timeout)
        finally:
            wish.waiter = None
            del self._wishes[thread]

    def _enqueue(self, waiter: Waiter[Entry[Turnstile]]) -> Entry[Turnstile] | Exception | None:
        granted = super()._enqueue(waiter)
        if granted is None:
            wish = self._wishes[get_ident()]
            with self._lock:
                wish.waiter = waiter
            if wish.taken_back:  # before there was anybody to send away
                self.send_away(wish)
        return granted

    def _timed_out(self, waited: float) -> PoolTimeout:
        timeout = super()._timed_out(waited)
        timeout.setting = _SETTING
        return timeout

    def send_away(self, wish: Wish) -> None:
        """Fail the one who waits for a wish, if somebody does."""
        # Critical section: who is granted the turn is not sent away, and the other way round.
        with self._lock:
            waiter = wish.waiter
            if waiter is None or waiter not in self._waiters or waiter.granted is not None:
                return
            self._waiters.remove(waiter)
            waiter.granted = WishTakenBack()
            waiter.wake()
        self.serve_waiters()  # it may have been woken for a turn that another can have now


class _Locks:
    """The writer locks of this process, each as long as anybody has it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._by_path: weakref.WeakValueDictionary[str, WriterLock] = weakref.WeakValueDictionary()

    def of(self, label: str, path: str) -> WriterLock:
        """Return the lock of a file, whatever it is called."""
        real = os.path.realpath(path)
        forks.register(self)
        with self._guard:
            lock = self._by_path.get(real)
            if lock is None:
                lock = self._by_path[real] = WriterLock(label, real)
            return lock

    def forget_after_fork(self) -> None:
        """Have a guard of the child's own: the parent's may be held by a thread that the child does not have."""
        self._guard = threading.Lock()


_locks = _Locks()


def writer_lock(label: str, path: str | None) -> WriterLock:
    """Return the process's writer lock of a database, the same for every pool that has the file open.

    Args:
        label: the database's name, for errors.
        path: the database's file, or ``None`` for a lock of the caller's own.
    """
    return WriterLock(label, None) if path is None else _locks.of(label, path)
