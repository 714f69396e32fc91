"""The messages that wait to be sent, and those who wait for room to add one."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

from app.pools.core.waiters import TaskWaiter, ThreadWaiter, Waiter

Frames = tuple[bytes, ...]


class Backlog:
    """A bounded queue to which any thread appends without a lock.

    The bound is kept by those who append: they look at ``full`` first. Several may find the last place at once, so
    it may be exceeded by one message for each of them.

    Two rules keep a wake-up from being lost: who waits first registers and then looks whether there is room; who
    makes room then looks at those who wait. Whichever comes second sees the other.

    Args:
        capacity: how many messages may wait.
    """

    def __init__(self, capacity: int) -> None:
        self.queue: deque[Frames] = deque()
        self.capacity = capacity
        self.waiting: deque[Waiter[Any]] = deque()

    @property
    def full(self) -> bool:
        """Whether there is no room."""
        return len(self.queue) >= self.capacity

    def withdraw(self, frames: Frames) -> bool:
        """Take back this very message, not an equal one. Returns ``False`` if it is not queued any more.

        Messages may be appended meanwhile, but none may be taken: call it with the lock held that those hold who take.
        """
        queue = self.queue
        for position in reversed(range(len(queue))):
            if queue[position] is frames:
                del queue[position]
                return True
        return False

    def wait(self, seconds: float) -> None:
        """Block until there may be room, at most ``seconds``."""
        waiter: ThreadWaiter[Any] = ThreadWaiter()
        self.waiting.append(waiter)
        try:
            if self.full:
                waiter.wait(seconds)
        finally:
            self._leave(waiter)

    async def wait_async(self, seconds: float) -> None:
        """Do what ``wait`` does without blocking the event loop."""
        waiter: TaskWaiter[Any] = TaskWaiter()
        self.waiting.append(waiter)
        try:
            if self.full:
                await waiter.wait(seconds)
        finally:
            self._leave(waiter)

    def _leave(self, waiter: Waiter[Any]) -> None:
        with contextlib.suppress(ValueError):
            self.waiting.remove(waiter)
        self.call_waiting()  # one that was woken and gives up passes the wake-up on

    def call_waiting(self) -> None:
        """Wake as many as there is room for, those first who have waited longest."""
        room = self.capacity - len(self.queue)
        while room > 0 and self.waiting:
            try:
                waiter = self.waiting.popleft()
            except IndexError:  # another thread was faster
                return
            room -= waiter.wake()
