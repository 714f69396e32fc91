"""A stock: the idle entries of one configuration key, and the queue of those who wait for one.

Idle entries form a stack, so that the warmest is used first and the coldest expire. ``deque.pop`` and
``deque.append`` are atomic, hence whoever finds an idle entry takes no lock.

Everything else (growth, waiting, closing) happens under one short lock, with three rules that keep a wake-up from
being lost and a caller from starving:

* a waiter first registers and then looks at the idle stack; who returns an entry first appends it and then
  looks at the waiters. Whichever comes second sees the other;
* whoever takes an idle entry after a wait wakes the next waiter if there is another: several returns at once may
  have woken one and the same;
* a waiter younger than ``fair_after`` is only woken, to compete with running threads (handing over each entry
  would force a thread switch per use); an older one is handed the next entry directly, oldest first.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from typing import Any, TypeVar

from app.pools.core.entries import NEVER, Entry
from app.pools.core.places import PAUSED, SHARING, Places
from app.pools.core.waiters import TaskWaiter, ThreadWaiter, Waiter
from app.pools.errors import PoolClosed, PoolTimeout

T = TypeVar("T")


class Stock(Places[T]):
    """What the callers of one key share: an idle entry for each of them, or a place, or else a place in the queue."""

    def _reset(self) -> None:
        super()._reset()
        self._idle: deque[Entry[T]] = deque()
        self._waiters: deque[Waiter[Entry[T]]] = deque()
        self._parked: list[Entry[T]] = []  # what would be idle, while the stock is paused

    @abstractmethod
    def _retire(self, entry: Entry[T]) -> None:
        """Close an entry's connection and give up its place."""

    @property
    def deserted(self) -> bool:
        """Whether there is no entry, and nobody who waits for one."""
        return not (self._size or self._waiters)

    # Waiting

    def _obtain(self, timeout: float | None) -> Entry[T]:
        """Wait for an entry, or for a place, which is one without a connection."""
        waiter: ThreadWaiter[Entry[T]] = ThreadWaiter()
        deadline = waiter.since + self._patience(timeout)
        try:
            granted = self._enqueue(waiter)
            while granted is None:
                woken = waiter.wait(deadline - time.monotonic())
                if woken and not self._idle and waiter.granted is None:
                    continue  # a running thread was faster, as most are: the lock is not needed to see that
                granted = self._look_again(waiter, last_chance=not woken)
        except BaseException:
            self._abandon(waiter)
            raise
        if isinstance(granted, Exception):
            raise granted
        return granted

    async def _obtain_async(self, timeout: float | None) -> Entry[T]:
        """Do what ``_obtain`` does without blocking the event loop."""
        waiter: TaskWaiter[Entry[T]] = TaskWaiter()
        deadline = waiter.since + self._patience(timeout)
        try:
            granted = self._enqueue(waiter)
            while granted is None:
                woken = await waiter.wait(deadline - time.monotonic())
                granted = self._look_again(waiter, last_chance=not woken)
        except BaseException:
            self._abandon(waiter)
            raise
        if isinstance(granted, Exception):
            raise granted
        return granted

    def _patience(self, timeout: float | None) -> float:
        """Return for how many seconds who gives ``timeout`` waits."""
        if timeout is not None:
            return timeout
        limits = self.limits
        return max(limits.checkout_timeout, limits.paused_timeout) if self._paused else limits.checkout_timeout

    def _enqueue(self, waiter: Waiter[Entry[T]]) -> Entry[T] | Exception | None:
        """Take a place below the cap, or a place in the queue."""
        if self._lost:
            self._reclaim()
        # Critical section: decide here whether to grow or to wait. Nothing else may take places.
        with self._lock:
            if self._closed:
                return PoolClosed(self.pool)
            may_grow = not self._paused and self._may_grow()
            place = self._reserve() if may_grow else None
            if place is not None:
                return place
            self._waiters.append(waiter)
        if may_grow and self._budget is not None:
            self._budget.reclaim(self)
        # An entry may have come back before we queued.
        return self._look_again(waiter, last_chance=False) if self._idle or waiter.granted is not None else None

    def _may_grow(self) -> bool:
        """Say, under the lock, whether a caller may make a connection now."""
        return self._size < self.limits.capacity

    def _look_again(self, waiter: Waiter[Entry[T]], *, last_chance: bool) -> Entry[T] | Exception | None:
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
            self._leave_queue(waiter)
            waiter.granted = None  # it is the caller's now: `_abandon` must not give it back as well
            waited = time.monotonic() - waiter.since
            self._tally.waits.record(waited)
        if self._waiters and (self._idle or self._may_grow()):
            self._serve()  # entries and places that came back together have woken the first waiter alone
        if granted is None:
            raise self._timed_out(waited)
        return granted

    def _abandon(self, waiter: Waiter[Entry[T]]) -> None:
        """Leave the queue, and pass on what was granted meanwhile."""
        with self._lock:
            granted, waiter.granted = waiter.granted, None
            self._leave_queue(waiter)
        if isinstance(granted, Entry):
            if granted.made:
                self._make_idle(granted)
            else:
                self._free(granted)
        elif self._waiters:
            self._serve()  # it may have been woken for an entry that another can use now

    def _leave_queue(self, waiter: Waiter[Entry[T]]) -> None:
        """Take a waiter, under the lock, out of the queue."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if self._budget is not None and not self._waiters:
            self._budget.withdraw(self)

    def timed_out(self, waited: float) -> PoolTimeout:
        """Return the error for a caller whose own deadline has ended its wait, and count it."""
        with self._lock:
            self._tally.timeouts += 1
            self._tally.waits.record(waited)
        return self._timed_out(waited)

    def _timed_out(self, waited: float) -> PoolTimeout:
        spent = self._budget if self._budget is not None and not self._budget.left else None
        longest = self.longest_held() if spent is None else spent.longest_held()
        return PoolTimeout(
            self.pool,
            self.label,
            capacity=self.limits.capacity,
            in_use=len(self._leased()),
            waiters=len(self._waiters),
            waited=waited,
            longest_holder=None if longest is None else longest.held(),
            total=None if spent is None else spent.capacity,
            sharers="the pool" if spent is None else spent.sharers,
            setting=self.limits.setting if spent is None else spent.setting,
            paused=self._paused,
        )

    # Serving

    def _make_idle(self, entry: Entry[T]) -> None:
        """Pass on an entry that was not leased."""
        entry.idle_since = time.monotonic()
        self._serve(entry)

    def _offer(self, now: float) -> None:
        """Tell the first waiter of an entry that has just become idle.

        Without the lock, unless the waiter is to be handed it: with many threads on few connections every return comes
        here. Whoever left the queue in between has not been told, so the next one is.
        """
        if not self._guarded:
            try:
                first = self._waiters[0]
            except IndexError:
                return
            told = now - first.since < self.limits.fair_after and first.wake()
            if told and (not self._idle or (self._waiters and self._waiters[0] is first)):
                return
        self._serve()

    def _serve(self, returned: Entry[T] | None = None) -> None:
        """Pass ``returned``, idle entries and free places on to the waiters."""
        now = time.monotonic()
        unused: list[Entry[T]] = []
        # Critical section: the order of the queue is decided here and nowhere else.
        with self._lock:
            while self._waiters and not (self._closed or self._paused):
                first = self._first_in_line()
                if first is None:
                    break
                if (returned is not None or self._idle) and now - first.since < self.limits.fair_after:
                    if first.wake():
                        break
                    continue
                grant: Entry[T] | None
                if returned is not None:
                    grant, returned = returned, None
                elif self._idle:
                    try:
                        grant = self._idle.pop()
                    except IndexError:  # a checkout that takes no lock was faster
                        continue
                else:
                    grant = self._reserve() if self._may_grow() else None
                    if grant is None:
                        break
                # Granted before it is woken, and out of the queue only then: so an interrupt makes nobody wait.
                first.granted = grant
                if first.wake():
                    self._waiters.remove(first)
                    continue
                first.granted = None
                if grant.made:
                    returned = grant
                else:
                    unused.append(grant)
            if returned is not None:
                self._idle.append(returned)
            if self._paused:
                self._park()
        for place in unused:
            self._free(place)
        if self._closed:
            self._retire_idle()
        elif SHARING in self._guarded and self._idle and self._budget is not None and self._budget.wants(self):
            self.yield_idle()

    def _first_in_line(self) -> Waiter[Entry[T]] | None:
        """Return, under the lock, the first waiter that takes what it is handed; the others before it are woken."""
        if self._waiters[0].attentive:
            return self._waiters[0]
        for waiter in list(self._waiters):
            if waiter.attentive:
                return waiter
            if waiter.gone:
                self._waiters.remove(waiter)
            else:
                waiter.wake()
        return None

    def serve_waiters(self) -> None:
        """Pass what has become free on to those who wait."""
        if self._waiters:
            self._serve()

    # Pausing

    def pause(self) -> None:
        """Hand out nothing until ``resume``; whoever checks out waits, as if all were in use."""
        with self._lock:
            self._guarded.add(PAUSED)
            self._park()

    def resume(self) -> None:
        """Hand out again, first to those who wait."""
        with self._lock:
            self._guarded.discard(PAUSED)
            self._unpark()
        self._serve()

    def _park(self) -> None:
        """Put idle entries, under the lock, where no checkout finds them."""
        while True:
            try:
                self._parked.append(self._idle.popleft())
            except IndexError:
                return

    def _unpark(self) -> None:
        self._idle.extend(self._parked)
        self._parked.clear()

    # Closing what is idle

    def _retire_idle(self) -> None:
        while True:
            try:
                entry = self._idle.pop()
            except IndexError:
                return
            self._retire(entry)

    def _put_away(self, entry: Entry[T]) -> None:
        """Close a connection that works, for its age, its idleness or another stock's sake, and count that."""
        with self._lock:
            self._tally.cleaned += 1
        self._retire(entry)

    def yield_idle(self) -> bool:
        """Close the coldest idle connection, for another stock's sake; not one that may never expire."""
        if self.limits.idle_timeout == NEVER:
            return False
        try:
            entry = self._idle.popleft()
        except IndexError:
            return False
        self._put_away(entry)
        return True

    # Reports

    def stats(self) -> dict[str, Any]:
        """Return the figures; times are seconds."""
        self._reclaim()
        connections = self._snapshot()
        with self._lock:
            figures = self._tally.summary(connections, waiting=len(self._waiters), capacity=self.limits.capacity)
        return figures | {"use": self._tally.recent_uses()}
