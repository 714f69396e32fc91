"""A watchdog: ends calls at their deadline, also when the peer is silent, at no cost to calls without one."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import queue
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeAlias

from app.pools.core import forks
from app.pools.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

GRACE = 0.5
"""Seconds after the deadline at which the connection is cut, if cancelling has not ended the call."""
_IDLE = 10.0
_FEW = 512
"""So many deadlines are kept without asking which of them are over."""


class _Deadline(ABC):
    """Something that must be over by a deadline. Used with ``with`` around it.

    Args:
        deadline: when it must be over, on the monotonic clock.
        cut: ends it at once. Must not block.

    Attributes:
        over: whether it is.
    """

    def __init__(self, deadline: float, cut: Callable[[], None]) -> None:
        self.deadline = deadline
        self.over = False
        self._cut = cut
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self.deadline != math.inf:
            _watchdog.add(self.deadline, self._expire, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First, for an interrupt may come at any time: whoever looks from now on does nothing.
        self.over = True
        self._let_finish()
        self._forget()

    def _let_finish(self) -> None:
        """Wait for what is being done to the connection, which must not reach whoever has it next."""
        with self._lock:
            pass

    def _forget(self) -> None:
        """Drop what is due no more: the watchdog may know of the deadline for long, and would keep a connection."""
        self._cut = _nothing

    @abstractmethod
    def _expire(self) -> None:
        """Do what is due at the deadline, in the watchdog's thread."""


class Watch(_Deadline):
    """One call with a deadline.

    Args:
        deadline: when the call must end, on the monotonic clock.
        cancel: asks the server to end the call. May block, for at most ``GRACE``; runs in its own thread.
        cut: makes the call fail at once, whatever the server does. Must not block.
    """

    def __init__(self, deadline: float, cancel: Callable[[], None], cut: Callable[[], None]) -> None:
        super().__init__(deadline, cut)
        self.expired = False
        self._cancel = cancel
        self._cutting = threading.Lock()  # not the other one, which a hanging cancel may hold

    def _expire(self) -> None:
        if self.over:
            return
        self.expired = True
        _watchdog.add(self.deadline + GRACE, self._end)
        threading.Thread(target=self._guarded_cancel, name="poolwire-sql-cancel", daemon=True).start()

    def _guarded_cancel(self) -> None:
        with self._lock:
            if self.over:
                return
            try:
                self._cancel()
            except Exception:
                log.debug("a statement could not be cancelled; its connection is cut", exc_info=True)

    def _end(self) -> None:
        with self._cutting:
            if not self.over:
                self._cut()

    def _let_finish(self) -> None:
        super()._let_finish()
        with self._cutting:
            pass

    def _forget(self) -> None:
        self._cancel = self._cut = _nothing


class Cutoff(_Deadline):
    """A question to a peer that fails if it is not answered by a deadline.

    It is asked also where no thread can watch over it: a connection that nobody asks, or gives back, helps nobody, and
    the kernel gives a silent peer up as well, if later, see ``Probe.keep_alive``.

    Args:
        deadline: when the question must be answered, on the monotonic clock.
        cut: makes it fail at once. Must not block.
    """

    def __enter__(self) -> Self:
        with suppress(DatabaseUnavailable):
            super().__enter__()
        return self

    def _expire(self) -> None:
        with self._lock:
            if not self.over:
                self._cut()


def _nothing() -> None:
    """Do nothing."""


_Due: TypeAlias = "tuple[float, int, Callable[[], None], _Deadline | None]"
"""When, in which order of those due at the same time, what is to be done, and for whose sake."""


class _Watchdog:
    """Runs actions when they are due, from one daemon thread that lives while there are any."""

    def __init__(self) -> None:
        self.forget_after_fork()

    def forget_after_fork(self) -> None:
        self._due: list[_Due] = []
        self._count = itertools.count()
        self._many = _FEW
        # Re-entrant, for a finaliser may end a lease within; and neither a Condition nor an Event, which a
        # KeyboardInterrupt can leave locked.
        self._lock = threading.RLock()
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, when: float, action: Callable[[], None], deadline: _Deadline | None = None) -> None:
        """Have ``action`` called at ``when``. Raises ``DatabaseUnavailable`` if there can be no thread for it.

        Args:
            when: seconds on the monotonic clock.
            action: what to call; must not block.
            deadline: for whose sake, if the action is of no use once that is over.
        """
        if sys.is_finalizing():
            return  # the thread runs no more and may have had the lock, and another one would never start
        with self._lock:
            self._ensure_running()
            heapq.heappush(self._due, (when, next(self._count), action, deadline))
            if self._due[0][2] is action or len(self._due) > self._many:
                self._signals.put(None)

    def _ensure_running(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            forks.register(self)
            # Known before it starts: it may run although its start is interrupted.
            self._thread = threading.Thread(target=self._run, name="poolwire-sql-watchdog", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:
                raise DatabaseUnavailable(f"no thread can watch over deadlines: {error}") from error

    def _run(self) -> None:
        idle = False
        while True:
            with self._lock:
                if self._thread is not threading.current_thread():
                    return  # its start was interrupted, and another one has its part
                if idle and not self._due:
                    self._thread = None
                    return
                action, pause = self._next()
            if action is None:
                idle = not self._signalled(pause)
                continue
            idle = False
            try:
                action()
            except Exception:
                # The others' deadlines must not pass unheeded for it.
                log.exception("what was due at a deadline failed")

    def _next(self) -> tuple[Callable[[], None] | None, float]:
        """Return, under the lock, what is due now, or else the seconds until something is."""
        if len(self._due) > self._many:
            self._drop_those_over()
        if not self._due:
            return None, _IDLE
        pause = self._due[0][0] - time.monotonic()
        if pause > 0:
            return None, min(pause, threading.TIMEOUT_MAX)
        return heapq.heappop(self._due)[2], 0.0

    def _drop_those_over(self) -> None:
        """Forget, in the watchdog's thread, which no signal interrupts, the deadlines that nobody waits for."""
        due, self._due = self._due, []
        for each in due:
            if each[3] is None or not each[3].over:
                heapq.heappush(self._due, each)
        self._many = max(_FEW, 2 * len(self._due))

    def _signalled(self, seconds: float) -> bool:
        """Wait for a signal, at most ``seconds``, and take all that are there. Returns whether there was one."""
        with suppress(queue.Empty):
            self._signals.get(timeout=seconds)
            with suppress(queue.Empty):
                while True:
                    self._signals.get_nowait()
            return True
        return False


_watchdog = _Watchdog()


def remind(when: float, action: Callable[[], None]) -> None:
    """Have ``action``, which must not block, called by the watchdog at ``when`` (monotonic seconds).

    At the limit of threads it may never be: nobody must depend on it.
    """
    with suppress(DatabaseUnavailable):
        _watchdog.add(when, action)
