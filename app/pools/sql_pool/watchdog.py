"""A watchdog: ends calls at their deadline, also when the peer is silent, at no cost to calls without one."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from app.pools.core import forks

log = logging.getLogger(__name__)

GRACE = 0.5
"""Seconds after the deadline at which the connection is cut, if cancelling has not ended the call."""
_IDLE = 10.0


class _Deadline(ABC):
    """Something that must be over by a deadline. Used with ``with`` around it.

    Args:
        deadline: when it must be over, on the monotonic clock.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._lock = threading.Lock()
        self._over = False

    def __enter__(self) -> Self:
        _watchdog.add(self.deadline, self._expire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First, for an interrupt may come at any time: whoever looks from now on does nothing.
        self._over = True
        self._let_finish()

    def _let_finish(self) -> None:
        """Wait for what is being done to the connection, which must not reach whoever has it next."""
        with self._lock:
            pass

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
        super().__init__(deadline)
        self.expired = False
        self._cancel = cancel
        self._cut = cut
        self._cutting = threading.Lock()  # not the other one, which a hanging cancel may hold

    def _expire(self) -> None:
        if self._over:
            return
        self.expired = True
        _watchdog.add(self.deadline + GRACE, self._end)
        threading.Thread(target=self._guarded_cancel, name="poolwire-sql-cancel", daemon=True).start()

    def _guarded_cancel(self) -> None:
        with self._lock:
            if self._over:
                return
            try:
                self._cancel()
            except Exception:
                log.debug("a statement could not be cancelled; its connection is cut", exc_info=True)

    def _end(self) -> None:
        with self._cutting:
            if not self._over:
                self._cut()

    def _let_finish(self) -> None:
        super()._let_finish()
        with self._cutting:
            pass


class Cutoff(_Deadline):
    """A question to a peer that fails if it is not answered by a deadline.

    Args:
        deadline: when the question must be answered, on the monotonic clock.
        cut: makes it fail at once. Must not block.
    """

    def __init__(self, deadline: float, cut: Callable[[], None]) -> None:
        super().__init__(deadline)
        self._cut = cut

    def _expire(self) -> None:
        with self._lock:
            if not self._over:
                self._cut()


class _Watchdog:
    """Runs actions when they are due, from one daemon thread that lives while there are any."""

    def __init__(self) -> None:
        self.forget_after_fork()

    def forget_after_fork(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._running = False

    def add(self, when: float, action: Callable[[], None]) -> None:
        """Have ``action`` called at ``when``. Raises ``RuntimeError`` if there can be no more threads."""
        with self._changed:
            if not self._running:
                forks.register(self)
                threading.Thread(target=self._run, name="poolwire-sql-watchdog", daemon=True).start()
                self._running = True  # not before: whoever comes after a failure tries again
            heapq.heappush(self._due, (when, next(self._count), action))
            if self._due[0][2] is action:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                if not self._due:
                    if not self._changed.wait(_IDLE) and not self._due:
                        self._running = False
                        return
                    continue
                when, _, action = self._due[0]
                if when > now:
                    self._changed.wait(when - now)
                    continue
                heapq.heappop(self._due)
            try:
                action()
            except Exception:
                # The others' deadlines must not pass unheeded for it.
                log.exception("what was due at a deadline failed")


_watchdog = _Watchdog()


def remind(when: float, action: Callable[[], None]) -> None:
    """Have ``action``, which must not block, called by the watchdog at ``when`` (monotonic seconds)."""
    _watchdog.add(when, action)
