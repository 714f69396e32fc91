"""Ending a thread's statement when the task that awaits it is cancelled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.pools.core.holders import CallSite
from app.pools.errors import PoolError
from app.pools.sql_pool.failures import forget_locals
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.watchdog import remind

AGAIN = 0.05
"""Seconds after which a statement that may not have begun is ended once more."""


class CallGivenUp(PoolError):
    """Nobody waits for the call any more. Raised in the pool's own threads, where only its clean-up sees it."""


class Interruption:
    """The way to one call that runs in a thread.

    Args:
        cancel: ends the statement that a connection executes, if any. Must not block.
        site: where the task asked, who is the call's holder.
    """

    def __init__(self, cancel: Callable[[Record], None], site: CallSite) -> None:
        self.site = site
        self._cancel = cancel
        # Held while a statement is ended: it must not be the statement of whoever has the connection next.
        self._lock = threading.Lock()
        self._record: Record | None = None
        self._wanted = False

    @contextmanager
    def during(self, record: Record) -> Iterator[None]:
        """Let what a connection does in this block be interrupted.

        Raises:
            CallGivenUp: the call was given up before it came so far.
        """
        with self._lock:
            if self._wanted:
                raise CallGivenUp("the task that asked was cancelled")
            self._record = record
        record.raw.lessee = lambda: self.site
        try:
            yield
        except BaseException as error:
            forget_locals(error)
            raise
        finally:
            record.raw.lessee = None
            with self._lock:
                self._record = None

    def interrupt(self) -> None:
        """End the statement that is being executed; one that has not begun does not begin."""
        with self._lock:
            self._wanted = True
            if self._record is None:
                return
            self._cancel(self._record)
        # A cancel that comes a moment before the statement's first step is lost, so it is repeated until the end.
        remind(time.monotonic() + AGAIN, self.interrupt)
