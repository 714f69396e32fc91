"""A cap over several buckets: what one key does not use, another may."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Protocol

_PAUSE = 0.02
_STARVING = 0.1


class Spender(Protocol):
    """A bucket, as the budget sees it."""

    def serve_waiters(self) -> None:
        """Pass what has become free on to those who wait."""

    def yield_idle(self) -> bool:
        """Close one idle connection whose loss harms nobody. Returns whether there was one."""


class Budget:
    """Places for connections, shared by buckets that each have a cap of their own.

    A bucket whose waiters need a place when none is left has another bucket's coldest idle connection closed, now
    or as soon as there is one; if it has to wait for long, the others give up connections that they would lend on.

    Args:
        capacity: connections of all buckets together, at most.
        sharers: whose buckets they are, for the error of who waits in vain.
        setting: where the capacity is set, for the same error; the pool's cap for each key unless given.
    """

    def __init__(self, capacity: int, sharers: str = "the pool", setting: str | None = None) -> None:
        self.capacity = capacity
        self.sharers = sharers
        self.setting = setting
        # Re-entrant as the buckets' locks are, for the same finalisers.
        self._lock = threading.RLock()
        self._left = capacity
        self._members: weakref.WeakSet[Spender] = weakref.WeakSet()
        self._watched_by = 0
        self.hungry: dict[Spender, float] = {}
        """Who needs a place, and since when on the monotonic clock."""

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
            self.hungry.setdefault(member, time.monotonic())
            if self._watched_by != os.getpid():  # a forked child has no thread yet
                self._watched_by = os.getpid()
                threading.Thread(target=self._watch, name="poolwire-budget", daemon=True).start()
            return False

    def give(self) -> None:
        """Give a place back, for any bucket that needs one. Called without a lock."""
        with self._lock:
            self._left += 1
            hungry, self.hungry = self.hungry, {}
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

    def starves(self, member: Spender) -> bool:
        """Say whether ``member`` should give up a connection, its own waiters notwithstanding, for another bucket."""
        due = time.monotonic() - _STARVING
        with self._lock:
            return any(other is not member and since <= due for other, since in self.hungry.items())

    def _watch(self) -> None:
        """Look for connections that have become idle while others need their places; ends when nobody does."""
        while True:
            time.sleep(_PAUSE)
            with self._lock:
                hungry = list(self.hungry)
                if not hungry:
                    self._watched_by = 0
                    return
            for member in hungry:
                self.reclaim(member)
