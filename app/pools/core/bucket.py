"""A bucket: the connections of one configuration key, checked out one at a time up to a hard cap.

``Stock`` decides who gets what; this is what happens to the connections. They are made and closed outside the lock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from app.pools.core import forks
from app.pools.core.budget import Budget
from app.pools.core.entries import NEVER, Entry, Limits
from app.pools.core.holders import CallSite, checkout_site
from app.pools.core.places import CLOSED
from app.pools.core.upkeep import TendedStock
from app.pools.errors import PoolClosed

__all__ = ["NEVER", "NOTHING_IDLE", "Bucket", "Entry", "Limits"]

T = TypeVar("T")

_DOOMED = 0.0  # an expiry that has always passed
_LOST_EVERY = 0.05
"""Seconds after which a stop that waits for leases looks for those that were lost: housekeeping has ended by then."""
_now = time.monotonic
NOTHING_IDLE: Entry[Any] = Entry(None)
"""Stands for no entry where one is expected. It has expired, so that a checkout that finds one need not ask for this.

Thus the wait is outside of ``except``: whatever comes of it would else seem to come from an empty deque.
"""
NOTHING_IDLE.expires_at = _DOOMED


class Bucket(TendedStock[T]):
    """The connections of one key.

    Args:
        pool: the pool's name, for errors.
        label: the key's name for errors and statistics, without secrets.
        limits: the cap and the times.
        create: makes a connection. May block; called without a lock.
        destroy: closes a connection. Called from any thread, also the housekeeper's; must not raise.
        create_async: the coroutine function that ``checkout_async`` uses to make a connection; ``create`` if
            making one does not block.
        usable: says at a checkout whether an entry idle until now still works; must cost next to nothing in
            the common case. Called without a lock by the thread that is about to own the entry.
        budget: a cap over several buckets, in addition to this one's.
        forsake: what to do with the connection of a lease that was lost, which whoever lost it may still use;
            ``destroy`` unless given.
    """

    def __init__(
        self,
        pool: str,
        label: str,
        limits: Limits,
        *,
        create: Callable[[], T],
        destroy: Callable[[T], None],
        create_async: Callable[[], Awaitable[T]] | None = None,
        usable: Callable[[Entry[T], float], bool] | None = None,
        budget: Budget | None = None,
        forsake: Callable[[T], None] | None = None,
    ) -> None:
        self._create = create
        self._create_async = create_async
        self._destroy = destroy
        self._usable = usable
        super().__init__(pool, label, limits, budget, forsake or destroy)

    # Checkout

    def checkout(self, timeout: float | None = None, site: CallSite | None = None) -> Entry[T]:
        """Return an entry for the caller's exclusive use, to be given to ``give_back`` or ``discard``.

        Args:
            timeout: seconds to wait for one, ``limits.checkout_timeout`` unless given.
            site: who asks, if the caller knows; else the stack is looked at.

        Raises:
            PoolTimeout: none became free in time.
            PoolClosed: the bucket is closed.
        """
        try:
            entry = self._idle.pop()
        except IndexError:
            entry = NOTHING_IDLE
        now = _now()
        if entry.expires_at <= now or (self._usable is not None and not self._usable(entry, now)):
            entry = self._checkout_fit(entry, timeout)
            now = _now()
        entry.leased_at = now
        entry.uses += 1
        entry.site = checkout_site(2) if site is None else site
        return entry

    async def checkout_async(self, timeout: float | None = None, site: CallSite | None = None) -> Entry[T]:
        """Do what ``checkout`` does without blocking the event loop."""
        deadline: float | None = None
        while True:
            try:
                entry = self._idle.pop()
            except IndexError:
                entry = NOTHING_IDLE
            if entry is NOTHING_IDLE:
                entry = await self._checkout_slowly_async(timeout)
            now = _now()
            if self._is_fit(entry, now):
                break
            self._replace(entry, now)
            deadline = self._deadline(timeout) if deadline is None else deadline
            timeout = max(0.0, deadline - now)
        entry.leased_at = now
        entry.uses += 1
        entry.site = checkout_site(2) if site is None else site
        return entry

    def _checkout_fit(self, entry: Entry[T], timeout: float | None) -> Entry[T]:
        """Return ``entry`` if it is one and fit for use, or else the first other one that is."""
        if entry is NOTHING_IDLE:
            entry = self._checkout_slowly(timeout)
        deadline = self._deadline(timeout)
        while not self._is_fit(entry, now := _now()):
            self._replace(entry, now)
            try:
                entry = self._idle.pop()
            except IndexError:
                entry = NOTHING_IDLE
            if entry is NOTHING_IDLE:
                entry = self._checkout_slowly(max(0.0, deadline - now))
        return entry

    def _deadline(self, timeout: float | None) -> float:
        # A peer that takes each new connection and ends it at once must not keep a caller for ever.
        return _now() + (self.limits.checkout_timeout if timeout is None else timeout)

    def _is_fit(self, entry: Entry[T], now: float) -> bool:
        if entry.expires_at <= now and (entry.uses or entry.expires_at == _DOOMED):
            return False  # one never used is not too old: a replacement would not be any newer
        # Nothing can have happened to one that was never idle: it was made for this caller just now.
        return not entry.idle_since or self._usable is None or self._usable(entry, now)

    def _replace(self, entry: Entry[T], now: float) -> None:
        """Close a connection that is not fit for use any more."""
        (self._put_away if _DOOMED < entry.expires_at <= now else self._retire)(entry)

    def _checkout_slowly(self, timeout: float | None) -> Entry[T]:
        entry = self._obtain(timeout)
        return entry if entry.made else self._furnish(entry, missed=1)

    async def _checkout_slowly_async(self, timeout: float | None) -> Entry[T]:
        entry = await self._obtain_async(timeout)
        if entry.made or self._create_async is None:
            return entry if entry.made else self._furnish(entry, missed=1)
        try:
            return self._admit(entry, await self._create_async(), missed=1)
        except BaseException:
            self._retire(entry)
            raise

    # Connecting

    def _furnish(self, place: Entry[T], *, missed: int) -> Entry[T]:
        """Make a connection for a place; if that fails, the place is free again."""
        try:
            return self._admit(place, self._create(), missed=missed)
        except BaseException:
            self._retire(place)
            raise

    def _admit(self, place: Entry[T], resource: T, *, missed: int) -> Entry[T]:
        """Put a new connection, for which ``missed`` callers found no idle one, in its place.

        Raises:
            PoolClosed: the bucket was closed meanwhile; the connection is in its place all the same, to be retired.
        """
        limits = self.limits
        lifetime = limits.max_lifetime * (1 - limits.lifetime_jitter * random.random())
        place.resource = resource
        place.expires_at = time.monotonic() + lifetime
        place.made = True
        with self._lock:
            if self._closed:
                raise PoolClosed(self.pool)
            self._tally.misses += missed
        return place

    def fill(self, least: int | None = None) -> None:
        """Make connections up to ``least``, ``limits.min_idle`` unless given. Raises what ``create`` raises."""
        wanted = self.limits.min_idle if least is None else least
        while True:
            with self._lock:
                place = None if self._closed or self._size >= wanted else self._reserve()
            if place is None:
                return
            self._make_idle(self._furnish(place, missed=0))

    # Return

    def give_back(self, entry: Entry[T]) -> None:
        """Return a healthy entry, for the next caller."""
        now = _now()
        self._tally.used.append(now - entry.leased_at)
        entry.idle_since = now
        entry.leased_at = 0.0
        if entry.expires_at <= now:
            self._replace(entry, now)
        elif self._guarded:
            if self._budget is not None and self._budget.starves(self):
                self._put_away(entry)
            else:
                self._serve(entry)
        else:
            self._idle.append(entry)
            if self._waiters or self._guarded:
                self._offer(now)

    def detach(self, entry: Entry[T]) -> T:
        """Take a leased entry's connection out of the bucket for good; closing it is the caller's part now."""
        self._free(entry)
        return entry.resource

    def discard(self, entry: Entry[T]) -> None:
        """Return an entry that nobody may use again: its state is unknown, broken, or private."""
        with self._lock:
            self._tally.discarded += 1
        self._tally.used.append(_now() - entry.leased_at)
        self._retire(entry)

    def _retire(self, entry: Entry[T]) -> None:
        if entry.lost is None:
            return  # checked out before a fork: the parent's to close
        # Closed first and counted out afterwards: otherwise a waiter could open one above the cap.
        if entry.made:
            self._destroy(entry.resource)
        self._free(entry)

    # Closing

    def refuse(self) -> None:
        """Hand out nothing more, fail those who wait, close what is idle."""
        with self._lock:
            self._guarded.add(CLOSED)
            self._unpark()
            for entry in self._entries:
                entry.expires_at = _DOOMED  # seen also by a checkout, which takes no lock
            self._note_drained()
            for waiter in list(self._waiters):
                waiter.granted = PoolClosed(self.pool)
                waiter.wake()
                self._leave_queue(waiter)
        self._retire_idle()

    def drain(self, seconds: float) -> list[str]:
        """Wait until every lease was given back, at most ``seconds``, after ``refuse``.

        Returns:
            who still holds a lease then; such a connection is closed when it is given back.
        """
        deadline = _now() + seconds
        while not self._drained.wait(max(0.0, min(_LOST_EVERY, deadline - _now()))) and _now() < deadline:
            self._reclaim()
        self._reclaim()
        return self._holders(self._leased())

    def end_leases(self) -> list[str]:
        """Close what is leased by those who cannot return it any more, as nobody can in a closed event loop.

        Returns:
            who held a lease.
        """
        leased = self._leased()
        holders = self._holders(leased)
        for entry in leased:
            self.discard(entry)
        return holders

    def _holders(self, leased: list[Entry[T]]) -> list[str]:
        return [f"{self.label}, {entry.held()}" for entry in leased]

    def clear(self) -> None:
        """Close what is idle, and what is leased once it is given back; those who come later get new ones."""
        for entry in self._snapshot():
            entry.expires_at = _DOOMED
        with self._lock:
            parked, self._parked = self._parked, []
        self._retire_idle()
        for entry in parked:
            self._retire(entry)

    def forget_after_fork(self) -> list[T]:
        """Start empty in a child process; what the parent opened stays untouched.

        Returns:
            the parent's connections, which nobody may use here.
        """
        inherited = list(self._entries)
        for entry in inherited:
            entry.expires_at = _DOOMED
            entry.lost = None
        forks.bury(inherited)
        self._reset()
        return [entry.resource for entry in inherited if entry.made]
