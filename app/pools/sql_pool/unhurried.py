"""Tasks that are not interrupted half-way by the end of their event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_MOMENT = 1.0
"""Seconds that one goes on although it was cancelled: a peer that answers needs some milliseconds."""


class Unhurried(asyncio.Task[T]):
    """A task that goes on for a moment when it is cancelled.

    ``asyncio.run`` cancels every task at its end, and waits for them. asyncpg must not be cancelled while it opens a
    socket: it leaves a future with an error for which nobody asks, and the event loop complains of that. The statement
    that it was to end would go on at the server, too.

    Args:
        work: what to do; an error of it after the cancellation is nobody's any more.
        loop: the running event loop.
    """

    def __init__(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self._ending: asyncio.TimerHandle | None = None
        super().__init__(self._done_with(work), loop=loop)

    async def _done_with(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except Exception:
            if self._ending is None:
                raise
            raise asyncio.CancelledError from None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the task in a moment, unless it has ended by then."""
        if self.done():
            return False
        if self._ending is None:
            self._ending = self.get_loop().call_later(_MOMENT, self.end)
        return True

    def end(self) -> None:
        """Cancel the task now."""
        super().cancel()


async def end_soon(tasks: Collection[Unhurried[Any]]) -> None:
    """Let tasks end, in a moment at most."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
