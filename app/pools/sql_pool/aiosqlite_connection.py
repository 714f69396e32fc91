"""aiosqlite's connection, whose thread outlives the event loops that it works for."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL, _TxQueue, set_exception, set_result

from app.pools.sql_pool import sqlite
from app.pools.sql_pool.interruption import AGAIN
from app.pools.sql_pool.watchdog import remind

_CHUNK = 64
_BRIEF = frozenset({"commit", "rollback", "close"})


class Connection(aiosqlite.Connection):
    """A connection whose statement ends with the task that awaits it.

    Args:
        connect: opens the database.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(self._open, _CHUNK)
        self._connect_to = connect
        self._opened: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=_work, args=(self._tx,), name="poolwire-aiosqlite", daemon=True)

    def _open(self) -> sqlite3.Connection:
        self._opened = self._connect_to()
        return self._opened

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            if getattr(fn, "__name__", None) not in _BRIEF:
                self._give_up()
            raise

    def stop(self) -> asyncio.Future[Any] | None:
        """Stop the thread, once: it would not answer a second time, and whoever awaits that would wait for ever."""
        if not self._running:
            return None
        self._tx.put_nowait((None, self._close_unclaimed))
        stopped: asyncio.Future[Any] | None = super().stop()
        return stopped

    def end(self) -> None:
        """Do what ``stop`` does, from any thread: it tells nobody, neither a loop that is closed nor one elsewhere."""
        if self._running:
            self._running = False
            self._tx.put_nowait((None, self._close))

    def end_lease(self) -> None:
        """Close the results that were not read to their end, before whatever the thread does next."""
        connection = self._connection
        if isinstance(connection, sqlite.Connection) and connection.has_handles:
            self._tx.put_nowait((None, connection.end_lease))

    def _close(self) -> object:
        """Close what is open, as the thread's last act."""
        self._connection = None
        if self._opened is not None:
            with contextlib.suppress(sqlite3.Error):  # SQLite closes it in any case
                self._opened.close()
        return _STOP_RUNNING_SENTINEL

    def _close_unclaimed(self) -> None:
        """Close what was opened for a task that was cancelled meanwhile."""
        if self._connection is None and self._opened is not None:
            self._opened.close()

    def _give_up(self) -> None:
        connection = self._connection
        if isinstance(connection, sqlite.Connection):
            ending = _Ending(connection)
            ending.end()
            self._tx.put_nowait((None, ending.over))  # the thread's next act, before whatever comes next


class _Ending:
    """Ends what a connection executes."""

    def __init__(self, connection: sqlite.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._over = False

    def end(self) -> None:
        """Do so, again and again until ``over``: it is lost on a statement that has not begun yet."""
        with self._lock:
            if self._over:
                return
            self._connection.give_up()
        remind(time.monotonic() + AGAIN, self.end)

    def over(self) -> None:
        """Let the connection execute what comes next."""
        with self._lock:
            self._over = True
            self._connection.go_on()


def _work(calls: _TxQueue) -> None:
    """Execute calls until told to stop, as aiosqlite's own thread does.

    That one ends, with a traceback and its connection open, when the loop that waits for its answer has been closed.
    """
    while True:
        future, call = calls.get()
        settle: Callable[[asyncio.Future[Any], Any], None] = set_result
        try:
            answer = call()
        except BaseException as error:  # noqa: BLE001 - the waiter's to handle
            settle, answer = set_exception, error
        if future is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(settle, future, answer)
        if answer is _STOP_RUNNING_SENTINEL:
            return
        del future, call, answer  # what they hold is not to stay until the next call
