"""Busy polling: to look for a reply for a moment before falling asleep, where that is found to pay.

To sleep and be woken takes longer than a reply of a peer nearby: on an idle machine twice as long in all. On a busy
one the processor is better left to others, and a slow peer is looked for in vain. What is right is not guessed from
either but measured, on the requests themselves.
"""

from __future__ import annotations

import math
import os
import time
from typing import Any

from app.pools.zmq_pool.backend import EVENTS, POLLIN, raw_get, raw_recv

_PAIRS = 8
"""How many times both ways are tried, in turn."""
_ENOUGH = 6
"""How many of them looking must win."""
_CLEARLY = 0.8
"""What share of the other's time it may take: it uses a processor that sleeping leaves to others."""
_ROUND = 1000
"""For how many receives the better way is kept."""

_yield = getattr(os, "sched_yield", lambda: None)
_now = time.monotonic


class BusyPoll:
    """Receives a socket's replies, and finds out which way is faster at present.

    Args:
        seconds: how long to look for a reply before sleeping; 0 to sleep at once.
    """

    __slots__ = ("_left", "_looked", "_pays", "_seconds", "_tried", "_wins")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._left = 0 if seconds else math.inf
        self._pays = False
        self._tried = 0
        self._looked = 0.0
        self._wins = 0

    def receive(self, socket: Any) -> Any:
        """Receive a frame, as ``raw_recv(socket, 0, True, False)`` does."""
        if not self._left:
            return self._try(socket)
        self._left -= 1
        if self._pays:
            self._look(socket)
        return raw_recv(socket, 0, True, False)

    def _look(self, socket: Any) -> None:
        end = _now() + self._seconds
        while not raw_get(socket, EVENTS) & POLLIN and _now() < end:
            _yield()  # to threads and processes that want the processor, the peer maybe

    def _try(self, socket: Any) -> Any:
        looks = self._tried % 2 == 0
        began = _now()
        if looks:
            self._look(socket)
        data = raw_recv(socket, 0, True, False)
        took = _now() - began
        self._tried += 1
        if looks:
            self._looked = took
        else:
            self._wins += self._looked < _CLEARLY * took
        if self._tried == 2 * _PAIRS:
            self._pays = self._wins >= _ENOUGH
            self._left, self._tried, self._wins = _ROUND, 0, 0
        return data
