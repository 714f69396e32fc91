"""Time limits of many requests, with few timers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_TICK = 0.05  # seconds


class Ticks:
    """Requests that begin within a tick, and have the same time limit, expire together: one timer for all of them.

    Args:
        loop: whose timers.
        expire: called with those of a tick and their limit.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[list[bytes], float], None]) -> None:
        self._loop = loop
        self._expire = expire
        self.collecting: dict[float, list[bytes]] = {}
        """By their limit in seconds, those of the ticks that have not ended: where ``begin`` is not needed any more."""

    def begin(self, seconds: float, number: bytes) -> None:
        """Begin a tick, with its first request."""
        self.collecting[seconds] = [number]
        self._loop.call_later(min(_TICK, seconds / 10), self._end, seconds)

    def add(self, seconds: float, number: bytes) -> None:
        """Have a request expire after ``seconds``, or a tick later."""
        if seconds in self.collecting:
            self.collecting[seconds].append(number)
        else:
            self.begin(seconds, number)

    def _end(self, seconds: float) -> None:
        numbers = self.collecting.pop(seconds)
        self._loop.call_later(seconds, self._expire, numbers, seconds)
