"""Deadlines of tasks: what ``asyncio.timeout`` does, for calls that mostly end long before theirs.

``asyncio.timeout`` puts a timer into the loop's heap for each call, where it stays after the call. Here each loop
has one timer, for the earliest deadline that it knew of; a call that ends in time only leaves a dictionary.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from types import TracebackType

_NEVER = float("inf")


class TaskLimit:
    """Ends the block at a deadline: ``with TaskLimit(deadline):`` in a coroutine.

    At the deadline the task is cancelled, and the block is left as if it had ended; what comes behind it is only
    reached in that case, provided that the block itself returns or raises. A cancellation by somebody else goes
    through.

    Args:
        deadline: monotonic seconds.
    """

    __slots__ = ("_cancelling", "_clock", "_task", "deadline", "expired")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.expired = False

    def __enter__(self) -> TaskLimit:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request needs a task; await it in a coroutine that a loop runs")
        self._task = task
        self._cancelling = task.cancelling()
        self._clock = _clock_of(task.get_loop())
        self._clock.watch(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._clock.limits.pop(self, None)
        if not self.expired:
            return False
        # Ours alone if nobody else asked for a cancellation meanwhile.
        return self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError

    def expire(self) -> None:
        """Cancel the task. For the clock."""
        self.expired = True
        self._task.cancel()


class _Clock:
    """The limits of one loop, and its timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop holds the timer, which holds this: a strong reference back would keep a loop alive for good.
        self._loop = weakref.ref(loop)
        self.limits: dict[TaskLimit, None] = {}
        self._wakes_at = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, limit: TaskLimit) -> None:
        self.limits[limit] = None
        if limit.deadline < self._wakes_at:
            self._wake_at(limit.deadline)

    def _wake_at(self, when: float) -> None:
        loop = self._loop()
        if loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = when
        self._timer = loop.call_later(max(0.0, when - time.monotonic()), self._ring)

    def _ring(self) -> None:
        self._timer, self._wakes_at = None, _NEVER
        now = time.monotonic()
        for limit in [limit for limit in self.limits if limit.deadline <= now]:
            del self.limits[limit]
            limit.expire()
        if self.limits:
            self._wake_at(min(limit.deadline for limit in self.limits))


_clocks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Clock] = weakref.WeakKeyDictionary()


def _clock_of(loop: asyncio.AbstractEventLoop) -> _Clock:
    clock = _clocks.get(loop)
    if clock is None:
        clock = _clocks[loop] = _Clock(loop)
    return clock
