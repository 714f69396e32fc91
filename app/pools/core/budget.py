"""A cap over several buckets: what one key does not use, another may."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol


class Spender(Protocol):
    """A bucket, as the budget sees it."""

    def serve_waiters(self) -> None:
        """Pass what has become free on to those who wait."""

    def yield_idle(self) -> bool:
        """Close one idle connection whose loss harms nobody. Returns whether there was one."""


class Budget:
    """Places for connections, shared by buckets that each have a cap of their own.

    A bucket whose waiters need a place when none is left has another bucket's coldest idle connection closed.

    Args:
        capacity: connections of all buckets together, at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._left = capacity
        self._members: weakref.WeakSet[Spender] = weakref.WeakSet()
        self._hungry: set[Spender] = set()

    @property
    def left(self) -> int:
        """How many places nobody has taken."""
        return self._left

    def join(self, member: Spender) -> None:
        """Let ``member`` be asked for idle connections."""
        with self._lock:
            self._members.add(member)

    def take(self, member: Spender) -> bool:
        """Take a place, or remember that ``member`` needs one. May be called under a bucket's lock."""
        with self._lock:
            if self._left > 0:
                self._left -= 1
                return True
            self._hungry.add(member)
            return False

    def give(self) -> None:
        """Give a place back, for any bucket that needs one. Called without a lock."""
        with self._lock:
            self._left += 1
            hungry, self._hungry = self._hungry, set()
        # All of them: one whose waiters have gone must not keep the place from the others.
        for member in hungry:
            member.serve_waiters()

    def reclaim(self, member: Spender) -> None:
        """Have another bucket close an idle connection for ``member``. Called without a lock."""
        with self._lock:
            others = [other for other in self._members if other is not member]
        for other in others:
            if other.yield_idle():
                return
