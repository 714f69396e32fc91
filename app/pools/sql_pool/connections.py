"""A bucket of database connections: one that knows failing servers and suspect connections."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from app.pools.core.bucket import Bucket, Entry, Limits
from app.pools.core.budget import Budget
from app.pools.core.holders import CallSite
from app.pools.core.waiters import Waiter
from app.pools.errors import (
    ConfigError,
    ConnectionRefused,
    DatabaseUnavailable,
    DatabaseUnreachable,
    PoolClosed,
    PoolTimeout,
)
from app.pools.sql_pool.failures import forget_frames, reason
from app.pools.sql_pool.record import Record

log = logging.getLogger(__name__)

PROBE_AFTER = 0.001
"""Seconds of idleness after which a connection's socket is looked at before it is used: within them a server's end is
no likelier than during the statement itself, and the look costs a hundredth of a short Session."""
PING_AFTER = 30.0
"""Seconds of idleness after which a connection is asked before it is used."""
PING_WITHIN = 0.5
"""Seconds within which a connection that is asked must answer. If one does not, the network is silent."""
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_HELPERS = 4


class FailedAttempt(DatabaseUnavailable):
    """An attempt to connect failed, and another one may succeed."""


class ConnectionBucket(Bucket[Record]):
    """The connections of one database.

    Helpers make the connections while callers queue, so that a caller takes whatever comes first and gives up
    at its deadline. While the server refuses, one helper tries again and again with growing, jittered pauses: a
    thousand callers make one attempt at a time. A refusal that will not pass (a wrong password) is raised at once.

    After a disconnect every connection that was idle then is suspect, and is asked before its next use.

    Args:
        label: the database's name, without secrets.
        limits: the cap and the times.
        create: makes a connection.
        destroy: closes one, from any thread.
        permanent: whether a failure to connect will not pass by itself.
        ping: asks a connection whether it works.
        create_async: makes a connection for a task.
        ping_async: asks a connection of a task.
        probed: whether connections can break while they are idle.
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
        ping: Callable[[Record], bool] | None = None,
        create_async: Callable[[], Awaitable[Record]] | None = None,
        ping_async: Callable[[Record], Awaitable[bool]] | None = None,
        probed: bool = True,
        budget: Budget | None = None,
    ) -> None:
        self._connect = create
        self._connect_async = create_async
        self._permanent = permanent
        self._ping = ping
        self._ping_async = ping_async
        self._loop = None if create_async is None else asyncio.get_running_loop()
        super().__init__(
            "sql",
            label,
            limits,
            create=self._attempt,
            create_async=None if create_async is None else self._attempt_async,
            destroy=destroy,
            usable=self._works if probed else None,
            budget=budget,
        )

    def _reset(self) -> None:
        super()._reset()
        self._failure: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._suspect_until = 0.0
        self._asking = False
        self.cleaning: set[Entry[Record]] = set()
        """What was leased, and is being cleaned in the background."""
        self.attempts = 0
        self.failed_attempts = 0

    # Suspicion

    def suspect_idle(self) -> None:
        """Have every connection that is idle now asked before its next use."""
        self._suspect_until = time.monotonic()

    def _works(self, entry: Entry[Record], now: float) -> bool:
        record = entry.resource
        readable = record.readable
        idle = now - entry.idle_since
        if (idle < PROBE_AFTER or not readable()) and idle < PING_AFTER and entry.idle_since > self._suspect_until:
            return True
        if self._ping is not None:
            if self._ping(record):
                return True
            record.mark_broken()
            if time.monotonic() - now >= PING_WITHIN:
                self.clear()  # asking the others in turn would keep the caller as long for each
            return False
        return not readable()  # a task asks it afterwards, for here it would block the event loop

    async def checkout_async(self, timeout: float | None = None, site: CallSite | None = None) -> Entry[Record]:
        """Return an entry for the caller's exclusive use; one that is suspect is asked first."""
        deadline: float | None = None
        while True:
            entry = await super().checkout_async(timeout, site)
            idle_since = entry.idle_since
            if self._ping_async is None:
                return entry
            if entry.leased_at - idle_since < PING_AFTER and idle_since > self._suspect_until:
                return entry
            try:
                if await self._ping_async(entry.resource):
                    return entry
            except TimeoutError:
                self.clear()  # asking the others in turn would keep the caller as long for each
            except BaseException:
                self.discard(entry)
                raise
            self.discard(entry)
            deadline = self._deadline(timeout) if deadline is None else deadline
            timeout = max(0.0, deadline - time.monotonic())

    # Connecting

    def _attempt(self) -> Record:
        try:
            record = self._connect()
        except Exception as error:
            raise self._failed(error) from error
        self._succeeded()
        return record

    async def _attempt_async(self) -> Record:
        assert self._connect_async is not None
        try:
            record = await self._connect_async()
        except Exception as error:
            raise self._failed(error) from error
        self._succeeded()
        return record

    def _succeeded(self) -> None:
        self.attempts += 1
        self._failure = None

    def _failed(self, error: Exception) -> Exception:
        """Take note of a failure to connect; return what to raise."""
        self.attempts += 1
        self.failed_attempts += 1
        forget_frames(error)
        if self._permanent(error):
            self._failure = None
            verdict = "cannot be connected to" if isinstance(error, ConfigError) else "refuses the connection"
            return ConnectionRefused(f"{self.label} {verdict}: {reason(error)}")
        self._failure = error
        return FailedAttempt(f"{self.label} cannot be reached: {reason(error)}")

    @property
    def _connecting(self) -> int:
        """How many connections are being made."""
        return sum(1 for entry in list(self._entries) if not entry.made)

    def _may_grow(self) -> bool:
        return False  # a caller never connects: it could not give up at its deadline while the server is silent

    def _enqueue(self, waiter: Waiter[Entry[Record]]) -> Entry[Record] | Exception | None:
        granted = super()._enqueue(waiter)
        if granted is None:
            self._call_helpers()
        return granted

    def refuse(self) -> None:
        """Hand out nothing more, fail those who wait, close what is idle."""
        super().refuse()
        for entry in list(self.cleaning):  # nobody has them, and who waits for them may keep their loop from going on
            self.discard(entry)

    def _note_drained(self) -> None:
        # Leases are waited for, not helpers whose server does not answer.
        if self._closed and self._size == self._connecting:
            self._drained.set()

    def _free(self, entry: Entry[Record]) -> bool:
        known = super()._free(entry)
        if self._waiters:
            self._call_helpers()
        return known

    def serve_waiters(self) -> None:
        """Pass what has become free on to those who wait."""
        super().serve_waiters()
        self._call_helpers()

    def _call_helpers(self) -> None:
        """Have connections made for those who wait: a few at a time, and one while the server refuses."""
        places: list[Entry[Record]] = []
        starved = False
        with self._lock:
            most = 1 if self._failure is not None else _HELPERS
            wanted = 0 if self._closed or self._paused else min(len(self._waiters), most) - self._connecting
            while len(places) < wanted and not starved:
                place = self._reserve()
                if place is None:
                    starved = self._size < self.limits.capacity
                    break
                places.append(place)
        if starved and self._budget is not None:
            self._budget.reclaim(self)
        self._start_helpers(places)

    def _start_helpers(self, places: list[Entry[Record]]) -> None:
        """Have connections made for places that are kept already."""
        for place in places:
            if self._loop is None:
                threading.Thread(target=self._help, args=(place,), name="poolwire-sql-connect", daemon=True).start()
                continue
            try:
                self._loop.call_soon_threadsafe(self._start_task, partial(self._help_async, place))
            except RuntimeError:  # the loop was closed with tasks still waiting, whom nobody can help any more
                with self._lock:
                    self._waiters.clear()
                self._free(place)

    def _start_task(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self._loop is not None
        task = self._loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _help(self, place: Entry[Record]) -> None:
        for pause in pauses():
            try:
                self._welcome(place, self._attempt())
                return
            except FailedAttempt:
                time.sleep(pause)
                if not self._still_wanted(place):
                    return
            except ConnectionRefused as refusal:
                self._refuse_waiters(place, refusal)
                return

    async def _help_async(self, place: Entry[Record]) -> None:
        for pause in pauses():
            try:
                self._welcome(place, await self._attempt_async())
                return
            except FailedAttempt:
                await asyncio.sleep(pause)
                if not self._still_wanted(place):
                    return
            except ConnectionRefused as refusal:
                self._refuse_waiters(place, refusal)
                return
            except asyncio.CancelledError:
                self._free(place)
                raise

    def _welcome(self, place: Entry[Record], record: Record) -> None:
        """Give a new connection to the one who has waited longest."""
        try:
            entry = self._admit(place, record, missed=1)
        except PoolClosed:
            self._retire(place)
            return
        entry.idle_since = time.monotonic()  # it worked just now: its first borrower need not ask
        with self._lock:
            # Directly, whatever the wait: were it only woken, it would look as if it still needed a connection.
            waiter = next((each for each in self._waiters if each.granted is None), None)
            if self._closed or self._paused:  # meanwhile
                waiter = None
            while waiter is not None:
                self._waiters.remove(waiter)
                if waiter.wake():
                    waiter.granted = entry
                    break
                waiter = next(iter(self._waiters), None)
        if waiter is None:
            self._make_idle(entry)
        self._call_helpers()

    def _still_wanted(self, place: Entry[Record]) -> bool:
        """Say whether a helper shall try again: if somebody waits, and no other helper is at it. Else it leaves."""
        with self._lock:
            wanted = bool(self._waiters) and self._connecting == 1 and not self._closed
        if not wanted:
            self._free(place)
        return wanted

    def _refuse_waiters(self, place: Entry[Record], refusal: ConnectionRefused) -> None:
        with self._lock:
            for waiter in list(self._waiters):
                own = ConnectionRefused(*refusal.args)  # each raises its own, with its own traceback
                own.__cause__ = refusal.__cause__
                waiter.granted = own
                waiter.wake()
                self._leave_queue(waiter)
        self._free(place)

    # Forks

    def forget_after_fork(self) -> list[Record]:
        """Start empty in a child process, which cannot reach the parent's servers through what it inherited.

        A child that leaves a block in which it was forked would otherwise end the parent's transaction.
        """
        inherited = super().forget_after_fork()
        for record in inherited:
            if record.probe is not None:
                record.probe.sever()
        return inherited

    # Housekeeping

    def sweep(self) -> None:
        """Close what has expired, ask what has been idle for long, and keep the least number of connections."""
        super().sweep()
        if self._usable is None:
            return  # SQLite's do not break, and a new one costs next to nothing
        if self._loop is None:
            self._ask_idle()
        elif not self._asking:
            self._asking = True
            with suppress(RuntimeError):  # the loop is closed, and the next round drops its connections
                self._loop.call_soon_threadsafe(self._start_task, self._ask_idle_async)
        if self.attempts and self._failure is None and not self._paused:
            self._keep_least()

    def _ask_idle(self) -> None:
        now = time.monotonic()
        for _ in range(len(self._idle)):
            try:
                entry = self._idle.popleft()
            except IndexError:
                break
            asked = entry.idle_since
            if self._works(entry, now):
                self._make_idle(entry)
                entry.idle_since = max(asked, now) if now - asked >= PING_AFTER else asked
            else:
                self._retire(entry)

    async def _ask_idle_async(self) -> None:
        try:
            for _ in range(len(self._idle)):
                try:
                    entry = self._idle.popleft()
                except IndexError:
                    break
                asked, now = entry.idle_since, time.monotonic()
                alive = False
                try:
                    alive = await self._works_async(entry.resource, now - asked)
                finally:
                    (self._make_idle if alive else self._retire)(entry)
                if alive:
                    entry.idle_since = now if now - asked >= PING_AFTER else asked
        finally:
            self._asking = False

    async def _works_async(self, record: Record, idle: float) -> bool:
        assert self._ping_async is not None
        if record.readable():
            return False
        try:
            return idle < PING_AFTER or await self._ping_async(record)
        except TimeoutError:
            return False

    def _keep_least(self) -> None:
        """Make connections up to the least number, of places that nobody else has."""
        spare = self.limits.capacity if self._budget is None else self._budget.left
        least = min(self.limits.min_idle, self._size + spare)
        if self._loop is not None:
            places: list[Entry[Record]] = []
            with self._lock:
                while not (self._closed or self._paused) and self._size < least:
                    if (place := self._reserve()) is None:
                        break
                    places.append(place)
            self._start_helpers(places)
            return
        try:
            self.fill(least)
        except (FailedAttempt, ConnectionRefused, PoolClosed) as error:
            log.debug("%s: no spare connection could be made: %r", self.label, error)

    def resume(self) -> None:
        """Hand out again, first to those who wait."""
        super().resume()
        self._call_helpers()

    def _timed_out(self, waited: float) -> PoolTimeout:
        timeout = super()._timed_out(waited)
        if self._budget is not None:
            # What is missing here may be leased from the database's other bucket.
            buckets = [each for each in self._budget.members() if isinstance(each, Bucket)]
            longest = self._budget.longest_held()
            timeout.in_use = sum(len(bucket._leased()) for bucket in buckets)
            timeout.waiters = sum(len(bucket._waiters) for bucket in buckets)
            timeout.longest_holder = None if longest is None else longest.held()
        failure = self._failure
        if failure is None:
            return timeout
        unreachable = DatabaseUnreachable(
            self.pool,
            self.label,
            capacity=timeout.capacity,
            in_use=timeout.in_use,
            waiters=timeout.waiters,
            waited=timeout.waited,
            longest_holder=timeout.longest_holder,
        )
        unreachable.reason = reason(failure)
        return unreachable

    def stats(self) -> dict[str, Any]:
        """Return the bucket's figures; times are seconds."""
        return {**super().stats(), "connect_attempts": self.attempts, "connect_failures": self.failed_attempts}


def pauses() -> Iterator[float]:
    """Yield the pauses between attempts to connect, in seconds: growing and jittered, without end."""
    pause = _FIRST_PAUSE
    while True:
        yield pause * (0.5 + random.random())
        pause = min(2 * pause, _LONGEST_PAUSE)
