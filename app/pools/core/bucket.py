"""A bucket: the connections of one configuration key, checked out one at a time up to a hard cap.

Idle entries form a stack, so that the warmest is used first and the coldest expire. ``deque.pop`` and
``deque.append`` are atomic, hence a checkout that finds an idle entry, and its return, take no lock.

Everything else (growth, waiting, closing) happens under one short lock, with three rules that keep a wake-up from
being lost and a caller from starving:

* a waiter first registers and then looks at the idle stack; who returns an entry first appends it and then
  looks at the waiters. Whichever comes second sees the other;
* whoever takes an idle entry after a wait wakes the next waiter if there is another: several returns at once may
  have woken one and the same;
* a waiter younger than ``fair_after`` is only woken, to compete with running threads (handing over each entry
  would force a thread switch per use); an older one is handed the next entry directly, oldest first.

Connections are made and closed outside the lock.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from app.pools.core import forks
from app.pools.core.budget import Budget
from app.pools.core.entries import NEVER, Entry, Limits
from app.pools.core.holders import CallSite, checkout_site, render
from app.pools.core.housekeeper import housekeeper
from app.pools.core.tally import Tally
from app.pools.core.waiters import Permit, TaskWaiter, ThreadWaiter, Waiter
from app.pools.errors import PoolClosed, PoolTimeout

__all__ = ["NEVER", "Bucket", "Entry", "Limits"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_DOOMED = 0.0  # an expiry that has always passed
_now = time.monotonic


class Bucket(Generic[T]):
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
        self.pool = pool
        self.label = label
        self.limits = limits
        self._create = create
        self._create_async = create_async
        self._destroy = destroy
        self._forsake = forsake or destroy
        self._report_loss = weakref.WeakMethod(self._take_in)
        self._usable = usable
        self._budget = budget
        if budget is not None:
            budget.join(self)
        self._reset()

    def _reset(self) -> None:
        # Re-entrant: the garbage collector may finalise what gives an entry back, an abandoned connection of
        # SQLAlchemy's or a generator, in the thread that is in a critical section at that moment.
        self._lock = threading.RLock()
        self._idle: deque[Entry[T]] = deque()
        self._entries: weakref.WeakSet[Entry[T]] = weakref.WeakSet()
        self._waiters: deque[Waiter[Entry[T]]] = deque()
        self._size = 0  # entries, and places kept for connections that are being made
        self._parked: list[Entry[T]] = []  # what would be idle, while the bucket is paused
        self._lost: deque[Entry[T]] = deque()
        self._closed = False
        self._paused = False
        self._guarded = False  # closed or paused: what is given back must not become idle
        self._drained = threading.Event()
        self._tally = Tally()

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
            entry = self._checkout_slowly(timeout)
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
        while True:
            try:
                entry = self._idle.pop()
            except IndexError:
                entry = await self._checkout_slowly_async(timeout)
            now = _now()
            if self._is_fit(entry, now):
                break
            self._retire(entry)
        entry.leased_at = now
        entry.uses += 1
        entry.site = checkout_site(2) if site is None else site
        return entry

    def _checkout_fit(self, entry: Entry[T], timeout: float | None) -> Entry[T]:
        """Return ``entry`` if it is new, or else the first other one that is fit for use."""
        while not self._is_fit(entry, _now()):
            self._retire(entry)
            try:
                entry = self._idle.pop()
            except IndexError:
                entry = self._checkout_slowly(timeout)
        return entry

    def _is_fit(self, entry: Entry[T], now: float) -> bool:
        if not entry.uses and entry.expires_at != _DOOMED:
            return True  # a replacement would not be any newer
        return entry.expires_at > now and (self._usable is None or self._usable(entry, now))

    def _checkout_slowly(self, timeout: float | None) -> Entry[T]:
        waiter: ThreadWaiter[Entry[T]] = ThreadWaiter()
        deadline = waiter.since + (self.limits.checkout_timeout if timeout is None else timeout)
        try:
            granted = self._enqueue(waiter)
            while granted is None:
                woken = waiter.wait(deadline - time.monotonic())
                granted = self._look_again(waiter, last_chance=not woken)
        except BaseException:
            self._abandon(waiter)
            raise
        if granted is not Permit.GROW:
            return self._entry_of(granted)
        try:
            return self._admit(self._create(), missed=1)
        except BaseException:
            self._release_place()
            raise

    async def _checkout_slowly_async(self, timeout: float | None) -> Entry[T]:
        waiter: TaskWaiter[Entry[T]] = TaskWaiter()
        deadline = waiter.since + (self.limits.checkout_timeout if timeout is None else timeout)
        try:
            granted = self._enqueue(waiter)
            while granted is None:
                woken = await waiter.wait(deadline - time.monotonic())
                granted = self._look_again(waiter, last_chance=not woken)
        except BaseException:
            self._abandon(waiter)
            raise
        if granted is not Permit.GROW:
            return self._entry_of(granted)
        try:
            made = self._create() if self._create_async is None else await self._create_async()
            return self._admit(made, missed=1)
        except BaseException:
            self._release_place()
            raise

    def _enqueue(self, waiter: Waiter[Entry[T]]) -> Entry[T] | Permit | Exception | None:
        """Take a place below the cap, or a place in the queue."""
        self._reclaim()
        # Critical section: decide here whether to grow or to wait. Nothing else may add to the size.
        with self._lock:
            if self._closed:
                return Permit.CLOSED
            may_grow = not self._paused and self._may_grow()
            if may_grow and self._reserve():
                return Permit.GROW
            self._waiters.append(waiter)
        if may_grow and self._budget is not None:
            self._budget.reclaim(self)
        return self._look_again(waiter, last_chance=False)  # an entry may have come back before we queued

    def _may_grow(self) -> bool:
        """Say, under the lock, whether a caller may make a connection now."""
        return self._size < self.limits.capacity

    def _reserve(self) -> bool:
        """Keep, under the lock, a place for one more connection, if all caps allow it."""
        if self._size >= self.limits.capacity or (self._budget is not None and not self._budget.take(self)):
            return False
        self._size += 1
        return True

    def _look_again(self, waiter: Waiter[Entry[T]], *, last_chance: bool) -> Entry[T] | Permit | Exception | None:
        """Return what the waiter was granted or finds idle; at its last chance raise ``PoolTimeout`` instead."""
        # Critical section: a grant, an idle entry and giving up exclude each other.
        with self._lock:
            granted = waiter.granted
            if granted is None:
                try:
                    granted = self._idle.pop()
                except IndexError:
                    if not last_chance:
                        return None
                    self._tally.timeouts += 1
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
            waiter.granted = None  # it is the caller's now: `_abandon` must not give it back as well
            waited = time.monotonic() - waiter.since
            self._tally.waits.record(waited)
        if granted is None:
            raise self._timed_out(waited)
        if self._waiters and self._idle:
            self._serve()  # entries that came back together have woken the first waiter alone
        return granted

    def _abandon(self, waiter: Waiter[Entry[T]]) -> None:
        """Leave the queue, and pass on what was granted meanwhile."""
        with self._lock:
            granted, waiter.granted = waiter.granted, None
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        if granted is Permit.GROW:
            self._release_place()
        elif isinstance(granted, Entry):
            self._make_idle(granted)
        elif self._waiters:
            self._serve()  # it may have been woken for an entry that another can use now

    def _entry_of(self, granted: Entry[T] | Permit | Exception) -> Entry[T]:
        if isinstance(granted, Exception):
            raise granted
        if isinstance(granted, Permit):
            raise PoolClosed(self.pool)
        return granted

    def _admit(self, resource: T, *, missed: int) -> Entry[T]:
        """Make an entry of a new connection, for which ``missed`` callers found no idle one."""
        limits = self.limits
        lifetime = limits.max_lifetime * (1 - limits.lifetime_jitter * random.random())
        entry = Entry(resource, time.monotonic() + lifetime, self._report_loss)
        with self._lock:
            closed = self._closed
            if not closed:
                self._entries.add(entry)
                self._tally.misses += missed
        if closed:
            entry.lost = None
            self._destroy(resource)
            raise PoolClosed(self.pool)
        return entry

    def _release_place(self) -> None:
        """Give up a place below the cap, to the oldest waiter if there is one."""
        with self._lock:
            self._size -= 1
            closed = self._closed
            if closed and not self._size:
                self._drained.set()
        if self._budget is not None:
            self._budget.give()
        if not closed:  # a closed bucket has no waiters, and would close each idle entry from within the last one
            self._serve()

    # Return

    def give_back(self, entry: Entry[T]) -> None:
        """Return a healthy entry, for the next caller."""
        now = _now()
        self._tally.used.append(now - entry.leased_at)
        entry.idle_since = now
        entry.leased_at = 0.0
        if entry.expires_at <= now:
            self._retire(entry)
        elif self._waiters or self._guarded:
            if self._budget is not None and self._budget.hungry and self._budget.starves(self):
                self._retire(entry)
            else:
                self._serve(entry)
        else:
            self._idle.append(entry)
            if self._waiters or self._guarded:  # they came in between
                self._serve()

    def _make_idle(self, entry: Entry[T]) -> None:
        """Pass on an entry that was not leased."""
        entry.idle_since = _now()
        self._serve(entry)

    def detach(self, entry: Entry[T]) -> T:
        """Take a leased entry's connection out of the bucket for good; closing it is the caller's part now."""
        if self._strike(entry):
            self._release_place()
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
        self._destroy(entry.resource)
        if self._strike(entry):
            self._release_place()

    def _take_in(self, entry: Entry[T]) -> None:
        """Take note of an entry that its lessee has lost.

        Called by its finaliser, which may run in any thread, in the middle of a critical section of this bucket or
        its budget: so it takes no lock, and leaves the rest to who comes next, the housekeeper if nobody else.
        """
        self._lost.append(entry)
        housekeeper.hurry()
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
            with self._lock:
                self._tally.discarded += 1
            self._forsake(entry.resource)
            if self._strike(entry):
                self._release_place()

    def _strike(self, entry: Entry[T]) -> bool:
        """Take an entry out of the bucket's books. Returns whether it was in them."""
        with self._lock:
            known, entry.lost = entry.lost is not None, None
            self._entries.discard(entry)
            self._tally.retired_uses += entry.uses if known else 0
        return known

    def _serve(self, returned: Entry[T] | None = None) -> None:
        """Pass ``returned``, idle entries and free places on to the waiters."""
        now = _now()
        unused = 0
        # Critical section: the order of the queue is decided here and nowhere else.
        with self._lock:
            while self._waiters and not self._guarded:
                first = self._waiters[0]
                if (returned is not None or self._idle) and now - first.since < self.limits.fair_after:
                    if first.wake():
                        break
                    self._waiters.popleft()
                    continue
                grant: Entry[T] | Permit
                if returned is not None:
                    grant, returned = returned, None
                elif self._idle:
                    try:
                        grant = self._idle.pop()
                    except IndexError:  # a checkout that takes no lock was faster
                        continue
                elif self._may_grow() and self._reserve():
                    grant = Permit.GROW
                else:
                    break
                self._waiters.popleft()
                if first.wake():
                    first.granted = grant
                elif isinstance(grant, Entry):
                    returned = grant
                else:
                    unused += 1
            if returned is not None:
                self._idle.append(returned)
            if self._paused:
                self._park()
            closed = self._closed
        for _ in range(unused):
            self._release_place()
        if closed:
            self._retire_idle()

    def serve_waiters(self) -> None:
        """Pass what has become free on to those who wait."""
        if self._waiters:
            self._serve()

    def yield_idle(self) -> bool:
        """Close the coldest idle connection, for another bucket's sake; not one that may never expire."""
        if self.limits.idle_timeout == NEVER:
            return False
        try:
            entry = self._idle.popleft()
        except IndexError:
            return False
        with self._lock:
            self._tally.cleaned += 1
        self._retire(entry)
        return True

    # Pausing

    def pause(self) -> None:
        """Hand out nothing until ``resume``; whoever checks out waits, as if all were in use."""
        with self._lock:
            self._paused = self._guarded = True
            self._park()

    def resume(self) -> None:
        """Hand out again, first to those who wait."""
        with self._lock:
            self._paused = False
            self._guarded = self._closed
            self._idle.extend(self._parked)
            self._parked.clear()
        self._serve()

    def _park(self) -> None:
        """Put idle entries, under the lock, where no checkout finds them."""
        while True:
            try:
                self._parked.append(self._idle.popleft())
            except IndexError:
                return

    def _timed_out(self, waited: float) -> PoolTimeout:
        leased = self._leased()
        longest = min(leased, key=lambda entry: entry.leased_at, default=None)
        spent = self._budget if self._budget is not None and not self._budget.left else None
        return PoolTimeout(
            self.pool,
            self.label,
            capacity=self.limits.capacity,
            in_use=len(leased),
            waiters=len(self._waiters),
            waited=waited,
            longest_holder=None if longest is None else longest.held(),
            total=None if spent is None else spent.capacity,
            sharers="the pool" if spent is None else spent.sharers,
            setting=None if spent is None else spent.setting,
        )

    # Housekeeping

    def fill(self, least: int | None = None) -> None:
        """Make connections up to ``least``, ``limits.min_idle`` unless given. Raises what ``create`` raises."""
        wanted = self.limits.min_idle if least is None else least
        while True:
            with self._lock:
                if self._closed or self._size >= wanted or not self._reserve():
                    return
            try:
                entry = self._admit(self._create(), missed=0)
            except BaseException:
                self._release_place()
                raise
            self._make_idle(entry)

    def sweep(self) -> None:
        """Close what has been idle too long or is too old, and report leases held too long."""
        self._reclaim()
        now = time.monotonic()
        limits = self.limits
        kept: deque[Entry[T]] = deque()
        ended: list[Entry[T]] = []
        for _ in range(len(self._idle)):
            try:
                entry = self._idle.popleft()
            except IndexError:
                break
            too_long = now - entry.idle_since >= limits.idle_timeout
            spare = self._size - len(ended) > limits.min_idle
            if entry.expires_at <= now or (too_long and spare):
                ended.append(entry)
            else:
                kept.append(entry)
        self._idle.extendleft(reversed(kept))
        if ended:
            with self._lock:
                self._tally.cleaned += len(ended)
            for entry in ended:
                self._retire(entry)
        if self._waiters:
            self._serve()
        self._report_leaks(now)

    def _report_leaks(self, now: float) -> None:
        for entry in self._snapshot():
            leased_at = entry.leased_at
            if leased_at and now - leased_at >= self.limits.leak_threshold and entry.reported_at != leased_at:
                entry.reported_at = leased_at
                with self._lock:
                    self._tally.leaks += 1
                log.warning(
                    "a %s connection for %s was not given back yet: %s",
                    self.pool,
                    self.label,
                    entry.held(),
                )

    # Closing

    def refuse(self) -> None:
        """Hand out nothing more, fail those who wait, close what is idle."""
        with self._lock:
            self._closed = self._guarded = True
            self._idle.extend(self._parked)
            self._parked.clear()
            for entry in self._entries:
                entry.expires_at = _DOOMED  # seen also by a checkout, which takes no lock
            if not self._size:
                self._drained.set()
            waiters, self._waiters = self._waiters, deque()
            for waiter in waiters:
                waiter.granted = Permit.CLOSED
                waiter.wake()
        self._retire_idle()

    def drain(self, seconds: float) -> list[str]:
        """Wait until every lease was given back, at most ``seconds``, after ``refuse``.

        Returns:
            who still holds a lease then; such a connection is closed when it is given back.
        """
        self._reclaim()
        self._drained.wait(max(0.0, seconds))
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

    def _retire_idle(self) -> None:
        while True:
            try:
                entry = self._idle.pop()
            except IndexError:
                return
            self._retire(entry)

    def clear(self) -> None:
        """Close what is idle, and what is leased once it is given back; those who come later get new ones."""
        for entry in self._snapshot():
            entry.expires_at = _DOOMED
        self._retire_idle()

    def forget_after_fork(self) -> None:
        """Start empty in a child process; what the parent opened stays untouched."""
        inherited = list(self._entries)
        for entry in inherited:
            entry.expires_at = _DOOMED
            entry.lost = None
        forks.bury(inherited)
        self._reset()

    # Statistics

    def _snapshot(self) -> list[Entry[T]]:
        with self._lock:
            return list(self._entries)

    def _leased(self) -> list[Entry[T]]:
        return [entry for entry in self._snapshot() if entry.leased_at]

    def stats(self) -> dict[str, Any]:
        """Return the bucket's figures; times are seconds."""
        self._reclaim()
        with self._lock:
            figures = self._tally.summary(self._entries, waiting=len(self._waiters), capacity=self.limits.capacity)
        return figures | {"use": self._tally.recent_uses()}
