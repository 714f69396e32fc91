"""A bucket of database connections that openers make, while its callers queue.

Whom to send, and what becomes of what they made, is decided here, under the lock. ``Openers`` is how they go about it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from itertools import islice

from app.pools.core.bucket import Bucket, Entry, Limits
from app.pools.core.budget import Budget
from app.pools.core.waiters import Waiter
from app.pools.errors import ConnectionRefused, DatabaseUnavailable, PoolClosed
from app.pools.sql_pool.attempts import Attempts, FailedAttempt
from app.pools.sql_pool.loop_tasks import LoopTasks
from app.pools.sql_pool.openers import Openers
from app.pools.sql_pool.record import Record

log = logging.getLogger(__name__)

_MOST_OPENERS = 4


class EmployerBucket(Bucket[Record]):
    """The connections of one database, and those who make them.

    Openers make the connections while callers queue, so that a caller takes whatever comes first and gives up
    at its deadline. While the server refuses, one opener tries again and again with growing, jittered pauses: a
    thousand callers make one attempt at a time. A refusal that will not pass (a wrong password) is raised at once.

    Args:
        label: the database's name, without secrets.
        limits: the cap and the times.
        create: makes a connection.
        destroy: closes one, from any thread.
        permanent: whether a failure to connect will not pass by itself.
        create_async: makes a connection for a task.
        usable: says at a checkout whether an idle connection still works.
        budget: the cap that the database's connections for threads and for tasks have together.
    """

    def __init__(
        self,
        label: str,
        limits: Limits,
        *,
        create: Callable[[], Record],
        destroy: Callable[[Record], None],
        permanent: Callable[[Exception], bool],
        create_async: Callable[[], Awaitable[Record]] | None,
        usable: Callable[[Entry[Record], float], bool] | None,
        budget: Budget | None,
    ) -> None:
        self._attempts = Attempts(label, create, create_async, permanent)
        self._loop = None if create_async is None else asyncio.get_running_loop()
        super().__init__(
            "sql",
            label,
            limits,
            create=self._attempts.connect,
            create_async=None if create_async is None else self._attempts.connect_async,
            destroy=destroy,
            usable=usable,
            budget=budget,
        )

    def _reset(self) -> None:
        super()._reset()
        self._attempts.forget()
        self._tasks = None if self._loop is None else LoopTasks(self._loop)
        self._openers = Openers(self, self._attempts, self._tasks)
        self._summoned = False

    # What is being made

    @property
    def _connecting(self) -> int:
        """How many connections are being made."""
        return sum(1 for entry in list(self._entries) if not entry.made)

    def _longest_connecting(self) -> float | None:
        begun = [entry.taken_at for entry in list(self._entries) if not entry.made]
        return time.monotonic() - min(begun) if begun else None

    def _note_drained(self) -> None:
        # Leases are waited for, not openers whose server does not answer.
        if self._closed and self._size == self._connecting:
            self._drained.set()

    # Connecting, for those who wait

    def _may_grow(self) -> bool:
        return False  # a caller never connects: it could not give up at its deadline while the server is silent

    def _enqueue(self, waiter: Waiter[Entry[Record]]) -> Entry[Record] | Exception | None:
        granted = super()._enqueue(waiter)
        if granted is None:
            self._send_openers()
        return granted

    def _look_again(self, waiter: Waiter[Entry[Record]], *, last_chance: bool) -> Entry[Record] | Exception | None:
        granted = super()._look_again(waiter, last_chance=last_chance)
        if granted is None:
            self._send_openers()  # nobody may have connected for it while its loop stood still
        return granted

    def _free(self, entry: Entry[Record]) -> bool:
        known = super()._free(entry)
        if self._waiters:
            self._send_openers()
        return known

    def serve_waiters(self) -> None:
        """Pass what has become free on to those who wait."""
        super().serve_waiters()
        self._send_openers()

    def resume(self) -> None:
        """Hand out again, first to those who wait."""
        super().resume()
        self._send_openers()

    def _send_openers(self) -> None:
        """Have connections made for those who wait: a few at a time, and one while the server refuses.

        For an event loop's tasks in the loop itself: one that stands still would keep the places from all others.
        """
        if self._tasks is None or self._tasks.here:
            self._send_openers_here()
        elif not self._summoned:
            self._summoned = True
            try:
                self._tasks.loop.call_soon_threadsafe(self._send_summoned)
            except RuntimeError:  # the loop was closed with tasks still waiting: nobody can help them any more
                with self._lock:
                    self._waiters.clear()

    def _send_summoned(self) -> None:
        self._summoned = False
        self._send_openers_here()

    def _send_openers_here(self) -> None:
        with self._lock:
            most = 1 if self._attempts.failure is not None else _MOST_OPENERS
            wanted = 0 if self._closed or self._paused else self._attentive(most) - self._connecting
            places = self._reserve_up_to(wanted)
            starved = len(places) < wanted and self._size < self.limits.capacity
        if starved and self._budget is not None:
            self._budget.reclaim(self)
        self._openers.send(places)

    def _attentive(self, most: int) -> int:
        """Return, under the lock, how many would take a connection now, counted up to ``most``."""
        return sum(1 for _ in islice((True for waiter in self._waiters if waiter.attentive), most))

    def _reserve_up_to(self, wanted: int) -> list[Entry[Record]]:
        """Take, under the lock, so many places for connections, or as many as there are."""
        places: list[Entry[Record]] = []
        while len(places) < wanted and (place := self._reserve()) is not None:
            places.append(place)
        return places

    # What openers report

    def welcome(self, place: Entry[Record], record: Record) -> None:
        """Give a new connection to the one who has waited longest."""
        with self._lock:
            taken = place not in self._entries
            if not taken:  # nor will it be any more
                place.resource, place.made = record, True
        if taken:
            self._destroy(record)
            return
        try:
            entry = self._admit(place, record, missed=1)
        except PoolClosed:
            self._retire(place)
            return
        entry.idle_since = time.monotonic()  # it worked just now: its first borrower need not ask
        if not self._hand_over(entry):
            self._make_idle(entry)
        self._send_openers()

    def _hand_over(self, entry: Entry[Record]) -> bool:
        """Give an entry to the one who has waited longest, if anybody waits and may have it.

        Directly, whatever the wait: were it only woken, it would look as if it still needed a connection.
        """
        with self._lock:
            if self._closed or self._paused:  # meanwhile
                return False
            for waiter in [each for each in self._waiters if each.granted is None and each.attentive]:
                waiter.granted = entry
                if waiter.wake():
                    self._waiters.remove(waiter)
                    return True
                waiter.granted = None
        return False

    def still_wanted(self, place: Entry[Record]) -> bool:
        """Say whether an opener shall try again: if somebody waits, and no other one is at it. Else it leaves."""
        with self._lock:
            wanted = self._attentive(1) > 0 and self._connecting == 1 and not (self._closed or self._paused)
        if not wanted:
            self._free(place)
        return wanted

    def turn_away(self, place: Entry[Record], refusal: ConnectionRefused) -> None:
        """Fail those who wait, for no connection can be had."""
        with self._lock:
            self._fail_waiters(refusal)
        self._free(place)

    def go_without(self, place: Entry[Record], reason: RuntimeError) -> None:
        """Free the place of an opener that could not start; fail those who wait if there is nothing to wait for."""
        if self._budget is not None:
            self._budget.withdraw(self)  # or it would be offered the place at once, again and again
        super()._free(place)
        with self._lock:
            if not self._size:
                self._fail_waiters(DatabaseUnavailable(f"nothing can connect to {self.label}: {reason}"))

    def _fail_waiters(self, error: DatabaseUnavailable) -> None:
        """Fail, under the lock, all who wait."""
        for waiter in list(self._waiters):
            own = type(error)(*error.args)  # each raises its own, with its own traceback
            own.__cause__ = error.__cause__
            waiter.granted = own
            waiter.wake()
            self._leave_queue(waiter)

    def vacate(self, place: Entry[Record]) -> None:
        """Give up the place of an opener that was cancelled."""
        self._free(place)

    # Connecting, for those who will come

    def _keep_least(self) -> None:
        """Make connections up to the least number, of places that nobody else has, if the server lets it."""
        if self._paused or not self._attempts.made or self._attempts.failure is not None:
            return
        spare = self.limits.capacity if self._budget is None else self._budget.left
        least = min(self.limits.min_idle, self._size + spare)
        if self._tasks is None:
            try:
                self.fill(least)
            except (FailedAttempt, ConnectionRefused, PoolClosed) as error:
                log.debug("%s: no spare connection could be made: %r", self.label, error)
            return
        with self._lock:
            places = self._reserve_up_to(0 if self._closed or self._paused else least - self._size)
        self._openers.send(places)

    # Sharing with the database's other buckets

    def yield_idle(self) -> bool:
        """Close an idle connection, or take the place of one that is being made in an event loop that stands still."""
        if super().yield_idle():
            return True
        if self._tasks is None or self._tasks.loop.is_running():
            return False
        with self._lock:
            place = next((entry for entry in self._entries if not entry.made), None)
            if place is None:
                return False
            self._entries.discard(place)  # taken: who makes a connection for it will see that
        super()._free(place)
        return True
