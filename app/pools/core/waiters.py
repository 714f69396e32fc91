"""Those who wait for a connection: a thread or an asyncio task, in one queue."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

E = TypeVar("E")


class Waiter(ABC, Generic[E]):
    """A place in a bucket's queue. The bucket's lock guards ``granted``; ``wake`` may be called with it and without.

    Attributes:
        since: when it began to wait, on the monotonic clock.
        granted: what it waited for, or the error that it is to raise.
    """

    __slots__ = ("granted", "since")

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.granted: E | Exception | None = None

    @property
    def attentive(self) -> bool:
        """Whether it takes at once what it is handed."""
        return True

    @property
    def gone(self) -> bool:
        """Whether it can never be reached again."""
        return False

    @abstractmethod
    def wake(self) -> bool:
        """Let the waiter look again. Returns ``False`` if it does not do so at once, as one that is not attentive."""


class ThreadWaiter(Waiter[E]):
    """A thread that waits."""

    __slots__ = ("_signal",)

    def __init__(self) -> None:
        super().__init__()
        # A bare lock as a binary semaphore: an Event's or a Condition's own lock and list cost several
        # microseconds on each wait.
        self._signal = threading.Lock()
        self._signal.acquire()

    def wake(self) -> bool:
        """Release the thread; harmless if it was released before."""
        if self._signal.locked():
            with contextlib.suppress(RuntimeError):  # another thread was faster
                self._signal.release()
        return True

    def wait(self, seconds: float) -> bool:
        """Block until woken, at most ``seconds``. Returns whether it was woken."""
        return self._signal.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))


class TaskWaiter(Waiter[E]):
    """An asyncio task that waits, in whichever loop it runs.

    It is attentive while the loop runs. Between two runs it would keep what it is handed for as long as that takes, so
    it is only woken: it looks once the loop goes on.
    """

    __slots__ = ("_event", "_loop", "_woken")

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._woken = False

    @property
    def attentive(self) -> bool:
        """Whether the loop runs."""
        return self._loop.is_running()

    @property
    def gone(self) -> bool:
        """Whether the loop was closed with the task still waiting."""
        return self._loop.is_closed()

    def wake(self) -> bool:
        """Schedule the task, from any thread."""
        if not self._woken:  # or a loop that stands still would gather wake-ups
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._event.set)
        return self._loop.is_running()

    async def wait(self, seconds: float) -> bool:
        """Suspend until woken, at most ``seconds``. Returns whether it was woken."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        self._woken = False
        return True
