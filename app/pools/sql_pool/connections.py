"""A bucket of database connections: one that asks those that are suspect before it lends them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from app.pools.core.bucket import Bucket, Entry, Limits
from app.pools.core.budget import Budget
from app.pools.core.holders import CallSite
from app.pools.errors import PoolTimeout
from app.pools.sql_pool.employer import EmployerBucket
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.suspicion import Suspicion


class ConnectionBucket(EmployerBucket):
    """The connections of one database.

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
        self._suspicion = Suspicion(ping, ping_async, silent=self.clear)
        super().__init__(
            label,
            limits,
            create=create,
            destroy=destroy,
            permanent=permanent,
            create_async=create_async,
            usable=self._suspicion.works if probed else None,
            budget=budget,
        )

    def _reset(self) -> None:
        super()._reset()
        self._asking = False
        self.cleaning: set[Entry[Record]] = set()
        """What was leased, and is being cleaned in the background."""

    # Checkout

    def suspect_idle(self) -> None:
        """Have every connection that is idle now asked before its next use."""
        self._suspicion.suspect_idle()

    async def checkout_async(self, timeout: float | None = None, site: CallSite | None = None) -> Entry[Record]:
        """Return an entry for the caller's exclusive use; one that is suspect is asked first."""
        deadline: float | None = None
        while True:
            entry = await super().checkout_async(timeout, site)
            if not self._suspicion.is_suspect(entry) or await self._answers(entry):
                return entry
            deadline = self._deadline(timeout) if deadline is None else deadline
            timeout = max(0.0, deadline - time.monotonic())

    async def _answers(self, entry: Entry[Record]) -> bool:
        """Ask a leased connection whether it works; if not, it is discarded."""
        answers = False
        try:
            answers = await self._suspicion.answers(entry.resource)
        finally:
            if not answers:
                self.discard(entry)
        return answers

    # Housekeeping

    def sweep(self) -> None:
        """Close what has expired, ask what has been idle for long, and keep the least number of connections."""
        super().sweep()
        if self._usable is None:
            return  # SQLite's do not break, and a new one costs next to nothing
        if self._tasks is None:
            self._suspicion.ask(self._idle_in_turn(), self._put_back)
            self._keep_least()
        elif not self._asking:
            self._asking = True
            with suppress(RuntimeError):  # the loop is closed, and the next round drops its connections
                self._tasks.start_soon(self._sweep_async)

    async def _sweep_async(self) -> None:
        try:
            await self._suspicion.ask_async(self._idle_in_turn(), self._put_back)
            self._keep_least()
        finally:
            self._asking = False

    def _put_back(self, entry: Entry[Record], works: bool) -> None:
        (self._serve if works else self._retire)(entry)

    # Closing

    @property
    def closed(self) -> bool:
        """Whether it hands out nothing more."""
        return self._closed

    def refuse(self) -> None:
        """Hand out nothing more, fail those who wait, close what is idle."""
        super().refuse()
        for entry in list(self.cleaning):  # nobody has them, and who waits for them may keep their loop from going on
            self.discard(entry)

    def forget_after_fork(self) -> list[Record]:
        """Start empty in a child process, which cannot reach the parent's servers through what it inherited.

        A child that leaves a block in which it was forked would otherwise end the parent's transaction.
        """
        inherited = super().forget_after_fork()
        for record in inherited:
            if record.probe is not None:
                record.probe.sever()
        return inherited

    # Reports

    def _timed_out(self, waited: float) -> PoolTimeout:
        timeout = super()._timed_out(waited)
        if self._budget is not None:
            # What is missing here may be leased from the database's other bucket.
            buckets = [each for each in self._budget.members() if isinstance(each, Bucket)]
            longest = self._budget.longest_held()
            timeout.in_use = sum(len(bucket._leased()) for bucket in buckets)
            timeout.waiters = sum(len(bucket._waiters) for bucket in buckets)
            timeout.longest_holder = None if longest is None else longest.held()
        timeout.connecting = self._longest_connecting()
        return timeout if timeout.paused else self._attempts.explained(timeout)

    def stats(self) -> dict[str, Any]:
        """Return the bucket's figures; times are seconds. ``taken`` is what all have of the ``capacity`` together."""
        figures = super().stats()
        figures["taken"] = self._size if self._budget is None else self._budget.taken
        return {**figures, "connect_attempts": self._attempts.made, "connect_failures": self._attempts.failed}
