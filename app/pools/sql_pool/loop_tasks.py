"""Tasks that an event loop runs for the pool, and that nobody awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class LoopTasks:
    """Tasks of one event loop. They are kept here, for the loop itself knows its tasks weakly.

    Args:
        loop: the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def here(self) -> bool:
        """Whether the loop runs in this thread."""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Start a task, from within the loop."""
        task = self.loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def start_soon(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task, from any thread. Raises ``RuntimeError`` if the loop is closed."""
        self.loop.call_soon_threadsafe(self.start, work)
