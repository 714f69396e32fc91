"""A cap over several buckets: what one key does not use, another may."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Any, Protocol

from app.pools.core.entries import NEVER, Entry

_STARVING = 0.1

LOCK = threading.RLock()
"""Held for a moment by whoever changes the books of a bucket or a budget, of any of them.

The garbage collector may finalise what gives an entry back, an abandoned connection of SQLAlchemy's or a generator, in
a thread that is in such a critical section: so it is re-entrant, and one for all. With a lock for each, two threads
could come to wait for each other that way.
"""
# Forked while nobody holds it, for the child has nobody who would let it go.
os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


class Spender(Protocol):
    """A bucket, as the budget sees it."""

    def serve_waiters(self) -> None:
        """Pass what has become free on to those who wait."""

    def yield_idle(self) -> bool:
        """Close one idle connection whose loss harms nobody, now or soon. Returns whether there was one."""

    def share(self, wanted: bool) -> None:
        """Take note whether others need places: then offer what becomes idle. Must take no lock."""

    def longest_held(self) -> Entry[Any] | None:
        """Return the entry that has been checked out for the longest time, if one is."""


class Budget:
    """Places for connections, shared by buckets that each have a cap of their own.

    A bucket whose waiters need a place when none is left has another bucket's coldest idle connection closed: now, or
    by that bucket as soon as it has one. If it has to wait for long, the others give up connections that they would
    lend on.

    Args:
        capacity: connections of all buckets together, at most.
        sharers: whose buckets they are, for the error of who waits in vain.
        setting: where the capacity is set, for the same error; the pool's cap for each key unless given.
    """

    def __init__(self, capacity: int, sharers: str = "the pool", setting: str | None = None) -> None:
        self.capacity = capacity
        self.sharers = sharers
        self.setting = setting
        self._lock = LOCK
        self._taken: weakref.WeakSet[Entry[Any]] = weakref.WeakSet()  # seen, not counted, as in a bucket
        self._members: weakref.WeakSet[Spender] = weakref.WeakSet()
        self.hungry: dict[Spender, float] = {}
        """Who needs a place, and since when on the monotonic clock: since it got the last one, if it needs several."""
        self._served: weakref.WeakSet[Spender] = weakref.WeakSet()

    @property
    def taken(self) -> int:
        """How many places the buckets have taken together, for connections and for those that are being made."""
        return len(self._taken)

    @property
    def left(self) -> int:
        """How many places nobody has taken."""
        return self.capacity - self.taken

    def join(self, member: Spender) -> None:
        """Let ``member`` be asked for idle connections."""
        with self._lock:
            self._members.add(member)
            member.share(bool(self.hungry))

    def take(self, member: Spender, place: Entry[Any]) -> bool:
        """Take a place for an entry, or remember that ``member`` needs one. May be called under a bucket's lock."""
        with self._lock:
            if self.left > 0:
                self._taken.add(place)
                self._served.add(member)
                if member in self.hungry:
                    self.hungry[member] = time.monotonic()
                return True
            self.hungry.setdefault(member, time.monotonic())
            self._tell()
            return False

    def give(self, entry: Entry[Any]) -> None:
        """Give an entry's place back, for any bucket that needs one. Called without a lock."""
        with self._lock:
            self._taken.discard(entry)
            hungry, self.hungry = self.hungry, {}
            if hungry:
                self._tell()
        # All of them, who waits longest first: one whose waiters have gone must not keep the place from the others.
        for member, since in sorted(hungry.items(), key=lambda item: item[1]):
            self._served.discard(member)
            member.serve_waiters()
            with self._lock:
                still_hungry = member in self.hungry
                # Whoever got a place comes after the others: one that always has waiters would get each of them.
                if still_hungry and member not in self._served:
                    self.hungry[member] = since
            if still_hungry:
                self.reclaim(member)  # what became idle while nobody was known to be hungry was offered to nobody

    def withdraw(self, member: Spender) -> None:
        """Take note that ``member`` needs nothing any more. May be called under a bucket's lock."""
        if member in self.hungry:
            with self._lock:
                self.hungry.pop(member, None)
                self._tell()

    def _tell(self) -> None:
        for member in self._members:
            member.share(bool(self.hungry))

    def reclaim(self, member: Spender) -> None:
        """Have another bucket close an idle connection for ``member``. Called without a lock."""
        for other in self.members():
            if other is not member and other.yield_idle():
                return

    def wants(self, member: Spender) -> bool:
        """Say whether a bucket other than ``member`` needs a place."""
        with self._lock:
            return any(other is not member for other in self.hungry)

    def starves(self, member: Spender) -> bool:
        """Say whether ``member`` should give up a connection, its own waiters notwithstanding, for another bucket."""
        due = time.monotonic() - _STARVING
        with self._lock:
            return any(other is not member and since <= due for other, since in self.hungry.items())

    def longest_held(self) -> Entry[Any] | None:
        """Return the entry of any bucket that has been checked out for the longest time. Called without a lock."""
        held = [entry for member in self.members() if (entry := member.longest_held()) is not None]
        return min(held, key=lambda entry: entry.leased_at or NEVER, default=None)

    def members(self) -> list[Spender]:
        """Return the buckets that share the places."""
        with self._lock:
            return list(self._members)
