"""Places: what is taken of one configuration key's cap, by connections and by those that are being made.

How many places are taken is not counted but seen: by the entries that exist. A counter would have to change together
with them, and a KeyboardInterrupt can come between any two instructions.
"""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from app.pools.core.budget import LOCK, Budget
from app.pools.core.entries import NEVER, Entry, Limits
from app.pools.core.holders import render
from app.pools.core.housekeeper import housekeeper
from app.pools.core.tally import Tally

T = TypeVar("T")

CLOSED, PAUSED, SHARING = "closed", "paused", "sharing"
"""Why what is given back must not simply become idle: the last, because others need places of the budget."""


class Places(ABC, Generic[T]):
    """The places of one key, each of which an entry has: taken, given up, or lost together with it.

    Args:
        pool: the pool's name, for errors.
        label: the key's name for errors and statistics, without secrets.
        limits: the cap and the times.
        budget: a cap over several keys, in addition to this one's.
        forsake: what to do with the connection of an entry that was lost, which whoever lost it may still use.
    """

    def __init__(
        self, pool: str, label: str, limits: Limits, budget: Budget | None, forsake: Callable[[T], None]
    ) -> None:
        self.pool = pool
        self.label = label
        self.limits = limits
        self._budget = budget
        self._forsake = forsake
        self._report_loss = weakref.WeakMethod(self._take_in)
        self._reset()
        if budget is not None:
            budget.join(self)

    def _reset(self) -> None:
        self._lock = LOCK
        self._entries: weakref.WeakSet[Entry[T]] = weakref.WeakSet()
        self._lost: deque[Entry[T]] = deque()
        self._guarded: set[str] = set()  # one set, because a return can afford one look
        self._drained = threading.Event()
        self._tally = Tally()

    # Whom a free place is for

    @abstractmethod
    def _serve(self) -> None:
        """Pass what has become free on to those who wait, or to those who share the budget."""

    @abstractmethod
    def serve_waiters(self) -> None:
        """Pass what has become free on to those who wait, if anybody does."""

    @abstractmethod
    def yield_idle(self) -> bool:
        """Close an idle connection for the sake of who shares the budget. Returns whether there was one."""

    # State

    @property
    def _size(self) -> int:
        """How many places are taken: by connections, and by those that are being made."""
        return len(self._entries)

    @property
    def _closed(self) -> bool:
        return CLOSED in self._guarded

    @property
    def _paused(self) -> bool:
        return PAUSED in self._guarded

    def share(self, wanted: bool) -> None:
        """Take note whether others need places of the budget. Takes no lock."""
        if wanted:
            self._guarded.add(SHARING)
        else:
            self._guarded.discard(SHARING)

    def _snapshot(self) -> list[Entry[T]]:
        """Return the connections there are."""
        with self._lock:
            return [entry for entry in self._entries if entry.made]

    def _leased(self) -> list[Entry[T]]:
        return [entry for entry in self._snapshot() if entry.leased_at]

    def longest_held(self) -> Entry[T] | None:
        """Return the entry that has been checked out for the longest time, if one is."""
        return min(self._leased(), key=lambda entry: entry.leased_at or NEVER, default=None)

    @property
    def uses(self) -> int:
        """How often an entry was checked out that does not exist any more."""
        return self._tally.retired_uses

    # Taken

    def _reserve(self) -> Entry[T] | None:
        """Take, under the lock, a place for one more connection, if all caps allow it."""
        if self._size >= self.limits.capacity:
            return None
        place: Entry[T] = Entry(self._report_loss, time.monotonic())
        if self._budget is not None and not self._budget.take(self, place):
            place.lost = None
            return None
        self._entries.add(place)
        return place

    # Given up

    def _free(self, entry: Entry[T]) -> bool:
        """Give up an entry's place, to the oldest waiter if there is one. Returns whether the entry still had it."""
        with self._lock:
            known, entry.lost = entry.lost is not None, None
            self._entries.discard(entry)
            self._tally.retired_uses += entry.uses if known else 0
            closed = self._closed
            self._note_drained()
        if known and self._budget is not None:
            self._budget.give(entry)
        if known and not closed:  # a closed one has no waiters, and would close each idle entry from within the last
            self._serve()
        return known

    def _note_drained(self) -> None:
        """Say, under the lock, when everything is closed and no place is taken any more."""
        if self._closed and not self._size:
            self._drained.set()

    # Lost

    def _take_in(self, entry: Entry[T]) -> None:
        """Take note of an entry that nobody has any more.

        Called by its finaliser, which may run in any thread, in the middle of a critical section of this object or
        its budget: so it takes no lock, and leaves the rest to who comes next, the housekeeper if nobody else.
        """
        self._lost.append(entry)
        housekeeper.hurry()
        if not entry.leased_at:
            return  # dropped by an interrupt on the way to its lessee, or back
        warnings.warn(
            f"a lease of {self.label} was never ended; it was checked out at {render(entry.site)}. Use it in a `with`",
            ResourceWarning,
            stacklevel=3,
            source=entry,
        )

    def _reclaim(self) -> None:
        """Free the places of entries that were lost."""
        while self._lost:
            try:
                entry = self._lost.popleft()
            except IndexError:  # another thread was faster
                return
            if entry.made:
                with self._lock:
                    self._tally.discarded += 1
                self._forsake(entry.resource)
            self._free(entry)
