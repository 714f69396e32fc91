"""The side for tasks of a driver that blocks, as SQLite's does: its calls run in threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from app.pools.core.bucket import Entry, Limits
from app.pools.core.budget import Budget
from app.pools.core.holders import checkout_site
from app.pools.errors import DatabaseUnavailable, PoolClosed
from app.pools.sql_pool.arguments import Retry, require_known
from app.pools.sql_pool.async_side import AsyncSide
from app.pools.sql_pool.drivers import EngineDriver
from app.pools.sql_pool.interruption import Interruption
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.statements import Bound, Parameters, Statement
from app.pools.sql_pool.sync_side import SyncSide
from app.pools.sql_pool.threads import Call

T = TypeVar("T")


class ThreadedSide(AsyncSide):
    """The side of a database whose driver blocks: its calls run in a few threads, on the connections for threads.

    Args:
        driver: the driver, which knows the database.
        limits: the cap and the times.
        label: the database's name, without secrets.
        budget: the cap that the database's sides have together.
        threads: the side for threads.
        executor: runs its calls.
    """

    def __init__(
        self,
        driver: EngineDriver,
        limits: Limits,
        label: str,
        budget: Budget | None,
        threads: SyncSide,
        executor: Executor,
    ) -> None:
        super().__init__(driver, limits, label, budget)
        self._threads = threads
        self._executor = executor

    async def execute(self, sql: str, params: Parameters, timeout: float | None, retry: Retry | None) -> list[Row]:
        """See ``AsyncSide``."""
        require_known(retry)  # and there is nothing to retry: no server could be lost
        driver = self._threads.driver
        statement = self._threads.prepare(sql)
        bound = statement.bind(params)
        return await self._call(lambda record: driver.fetch(record, statement, bound), statement, timeout)

    async def execute_many(self, sql: str, rows: Iterable[Parameters], timeout: float | None) -> int:
        """See ``AsyncSide``."""
        driver = self._threads.driver
        statement = self._threads.prepare(sql)
        counted = Bound.of(statement, rows)
        await self._call(lambda record: driver.execute_many(record, statement, counted), statement, timeout, counted)
        return counted.count

    async def copy_rows(
        self, table: str, columns: Sequence[str], rows: Iterable[Parameters], timeout: float | None
    ) -> int:
        """See ``AsyncSide``."""
        driver = self._threads.driver
        counted = Bound.for_columns(columns, rows)
        await self._call(lambda record: driver.copy_rows(record, table, columns, counted), None, timeout, counted)
        return counted.count

    async def stream(self, sql: str, params: Parameters, batch: int, timeout: float | None) -> AsyncIterator[Row]:
        """See ``AsyncSide``."""
        threads = self._threads
        statement = threads.prepare(sql)
        bound = statement.bind(params)
        interruption = Interruption(threads.driver.cancel, checkout_site(1))
        entry = await threads.bucket.checkout_async(timeout, interruption.site)
        batches = _Batches(threads, entry, threads.batches(entry, statement, bound, batch, interruption))
        try:
            while rows := await self._run(batches.next, interruption):
                for row in rows:
                    yield row
        finally:
            # Not awaited, for a task that is being cancelled could not.
            try:
                self._executor.submit(batches.close)
            except RuntimeError:  # the pool was stopped meanwhile, and its threads with it, or there can be no more
                batches.close()

    async def _call(
        self,
        work: Callable[[Record], T],
        statement: Statement | None,
        timeout: float | None,
        rows: Bound | None = None,
    ) -> T:
        """Do ``work``, which executes ``statement``, in a thread, within ``timeout`` seconds if there is one."""
        started = time.monotonic()
        threads = self._threads
        interruption = Interruption(threads.ending(rows), checkout_site(2))
        # Waited for out here: a thread that waits would be missing to those who have what it waits for.
        entry = await threads.bucket.checkout_async(threads.longest_wait(timeout, started), interruption.site)

        def serve() -> T:
            return threads.serve(entry, work, statement, started, timeout, interruption, rows)

        return await self._run(serve, interruption, unbegun=partial(threads.bucket.give_back, entry))

    async def _run(
        self, call: Callable[[], T], interruption: Interruption, unbegun: Callable[[], None] | None = None
    ) -> T:
        """Run a call in a thread, which ends its statement when the task that awaits it is cancelled.

        Args:
            call: what to run.
            interruption: the way to end it.
            unbegun: what to do if it never begins.
        """
        running = Call(call)
        try:
            self._executor.submit(running)
        except RuntimeError as error:
            if running.cancel():
                if unbegun is not None:
                    unbegun()
                if self._threads.bucket.closed:
                    raise PoolClosed("sql") from None
                raise DatabaseUnavailable(f"no thread can serve {self.label}: {error}") from error
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if running.cancelled() and unbegun is not None:
                unbegun()
            interruption.interrupt()
            raise


class _Batches:
    """A generator of batches that one thread at a time advances or closes."""

    def __init__(self, threads: SyncSide, entry: Entry[Record], batches: Generator[list[Row], None, None]) -> None:
        self._threads = threads
        self._entry = entry
        self._batches = batches
        self._begun = False
        self._lock = threading.Lock()

    def next(self) -> list[Row] | None:
        with self._lock:
            self._begun = True
            return next(self._batches, None)

    def close(self) -> None:
        with self._lock:
            self._batches.close()
            if not self._begun:  # nor has it ended then
                self._begun = True
                self._threads.bucket.give_back(self._entry)
