"""A database's side for the tasks of one event loop: an AsyncEngine, and the driver-level calls."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from app.pools.core.bucket import Entry, Limits
from app.pools.core.budget import Budget
from app.pools.core.holders import checkout_site
from app.pools.errors import DatabaseUnavailable, DatabaseUnreachable, PoolClosed, QueryTimeout
from app.pools.sql_pool.cleaning import AsyncCleaner
from app.pools.sql_pool.connections import ConnectionBucket
from app.pools.sql_pool.drivers import AsyncDriver, EngineDriver
from app.pools.sql_pool.failures import reason
from app.pools.sql_pool.interruption import Interruption
from app.pools.sql_pool.lease_pool import LeasePool
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.statements import Bound, Parameters, Statement, preparer
from app.pools.sql_pool.sync_side import Retry, SyncSide, require_known, require_number
from app.pools.sql_pool.threads import Call
from app.pools.sql_pool.unfinished import report_unfinished, watch_writes

T = TypeVar("T")

_CANCEL_SECONDS = 1.0
"""For how long a cancelled call waits for its connection to recover: a server that answers needs some milliseconds."""


class AsyncSide(ABC):
    """Connections of one database for the tasks of one event loop.

    Args:
        driver: the driver, which knows the database.
        limits: the cap and the times.
        label: the database's name, without secrets.
        budget: the cap that the database's sides have together.
    """

    def __init__(self, driver: EngineDriver, limits: Limits, label: str, budget: Budget | None) -> None:
        self.driver = driver
        self.label = label
        self.engine = driver.engine(limits, budget)
        self.lending_engine = AsyncEngine(watch_writes(self.engine.sync_engine))
        pool = self.engine.sync_engine.pool
        assert isinstance(pool, LeasePool)
        assert isinstance(pool.cleaner, AsyncCleaner)
        self.bucket: ConnectionBucket = pool.bucket
        self._clean = pool.cleaner.clean

    @abstractmethod
    async def execute(self, sql: str, params: Parameters, timeout: float | None, retry: Retry | None) -> list[Row]:
        """Execute one statement in autocommit mode and return its rows."""

    @abstractmethod
    async def execute_many(self, sql: str, rows: Iterable[Parameters], timeout: float | None) -> int:
        """Execute one statement for each set of parameters in one transaction; return how many there were."""

    @abstractmethod
    async def copy_rows(
        self, table: str, columns: Sequence[str], rows: Iterable[Parameters], timeout: float | None
    ) -> int:
        """Store many rows in one transaction; return how many there were."""

    @abstractmethod
    def stream(self, sql: str, params: Parameters, batch: int, timeout: float | None) -> AsyncIterator[Row]:
        """Yield a query's rows as the database finds them, holding a connection until the last or until closed."""


class NativeSide(AsyncSide):
    """The side of a driver whose calls are coroutines."""

    driver: AsyncDriver

    def __init__(self, driver: AsyncDriver, limits: Limits, label: str, budget: Budget | None) -> None:
        super().__init__(driver, limits, label, budget)
        self._prepare = preparer(driver.style)
        self._fetch = driver.fetch
        self._in_transaction = driver.in_transaction

    async def execute(self, sql: str, params: Parameters, timeout: float | None, retry: Retry | None) -> list[Row]:
        """See ``AsyncSide``."""
        statement = self._prepare(sql)
        if not statement.plain or params.__class__ is not tuple:
            params = statement.bind(params)
        if retry is None:
            return await self._execute(statement, params, timeout)
        require_known(retry)
        if not statement.reads:
            return await self._execute(statement, params, timeout)
        started = time.monotonic()
        try:
            return await self._execute(statement, params, timeout, started)
        except DatabaseUnreachable:
            raise
        except DatabaseUnavailable:
            return await self._execute(statement, params, timeout, started)

    async def _execute(
        self, statement: Statement, params: Any, timeout: float | None, started: float | None = None
    ) -> list[Row]:
        if timeout is not None or statement.residue:
            return await self._call(lambda record: self._fetch(record, statement, params), statement, timeout, started)
        bucket = self.bucket
        entry = await bucket.checkout_async()
        record = entry.resource
        try:
            rows = await self._fetch(record, statement, params)
        except BaseException as error:
            await self._fail(entry, error)
            raise
        if self._in_transaction(record):
            self._end(entry)
        else:
            bucket.give_back(entry)
        return rows

    async def execute_many(self, sql: str, rows: Iterable[Parameters], timeout: float | None) -> int:
        """See ``AsyncSide``."""
        statement = self._prepare(sql)
        counted = _Rows.of(statement, rows)
        return await self._store(
            lambda record: self.driver.execute_many(record, statement, counted), statement, counted, timeout
        )

    async def copy_rows(
        self, table: str, columns: Sequence[str], rows: Iterable[Parameters], timeout: float | None
    ) -> int:
        """See ``AsyncSide``."""
        counted = _Rows.for_columns(columns, rows)
        return await self._store(
            lambda record: self.driver.copy_rows(record, table, columns, counted), None, counted, timeout
        )

    async def stream(self, sql: str, params: Parameters, batch: int, timeout: float | None) -> AsyncIterator[Row]:
        """See ``AsyncSide``."""
        statement = self._prepare(sql)
        bound = statement.bind(params)
        entry = await self.bucket.checkout_async(timeout)
        entry.resource.raw.residue |= statement.residue
        try:
            # Left to the garbage collector, the batches would end while the connection recovers.
            async with aclosing(self.driver.stream(entry.resource, statement, bound, batch)) as batches:
                async for rows in batches:
                    for row in rows:
                        yield row
        except BaseException as error:
            await self._fail(entry, error)
            raise
        self._end(entry)

    async def _store(
        self,
        work: Callable[[Record], Awaitable[None]],
        statement: Statement | None,
        rows: _Rows,
        timeout: float | None,
    ) -> int:
        """Do ``work``, which takes the caller's rows; return how many. What they raise reaches the caller as it is."""
        try:
            await self._call(work, statement, timeout)
        except Exception:
            if rows.failure is None:
                raise
        if rows.failure is not None:
            raise rows.failure  # out here, where it does not get the driver's view of it as its context
        return rows.count

    async def _call(
        self,
        work: Callable[[Record], Awaitable[T]],
        statement: Statement | None,
        timeout: float | None,
        started: float | None = None,
    ) -> T:
        """Do ``work``, which executes ``statement``, with a connection, within ``timeout`` seconds if there is one.

        They count since ``started``, which is now unless given.
        """
        require_number(timeout)
        now = time.monotonic()
        deadline = None if timeout is None else (now if started is None else started) + timeout
        bucket = self.bucket
        entry = await bucket.checkout_async(
            None if deadline is None else min(deadline - now, bucket.limits.checkout_timeout)
        )
        record = entry.resource
        if statement is not None:
            record.raw.residue |= statement.residue
        limit = asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic()))
        try:
            async with limit:
                result = await work(record)
        except BaseException as error:
            if timeout is not None and limit.expired():
                self._clean(entry)
                raise QueryTimeout(self.label, timeout) from error
            await self._fail(entry, error)
            raise
        self._end(entry)
        return result

    def _end(self, entry: Entry[Record]) -> None:
        """Give a connection back, and roll back the transaction that a statement's text has opened."""
        record = entry.resource
        unfinished = self._in_transaction(record)
        if unfinished:
            report_unfinished(self.label, entry.site)
        if unfinished or self.driver.residue(record):
            self._clean(entry)
        else:
            self.bucket.give_back(entry)

    async def _fail(self, entry: Entry[Record], error: BaseException) -> None:
        """Give a connection back after a failure: a faulty statement does not cost it, nor does a cancellation."""
        record, driver = entry.resource, self.driver
        if driver.lost(record, error):
            self.bucket.suspect_idle()
            self.bucket.discard(entry)
            if isinstance(error, Exception):
                raise DatabaseUnavailable(f"the connection to {self.label} was lost: {reason(error)}") from error
        elif isinstance(error, Exception) and not (
            # An answer that came once it is idle would be taken for its end.
            driver.awaited(record) or self._in_transaction(record) or driver.residue(record)
        ):
            self.bucket.give_back(entry)
        else:
            cleaning = self._clean(entry)
            if isinstance(error, asyncio.CancelledError) and cleaning is not None:
                # `asyncio.run` closes its loop as soon as the tasks that it cancels have ended.
                await asyncio.wait({cleaning}, timeout=_CANCEL_SECONDS)


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


class _RowsFailed(Exception):
    """The caller's rows raised an error."""


class _Rows(Bound):
    """Bound rows that keep their own error from the driver, which would take an ``OSError`` for the connection's."""

    failure: Exception | None = None

    def __iter__(self) -> Iterator[Sequence[Any]]:
        try:
            yield from super().__iter__()
        except Exception as error:
            self.failure = error
            raise _RowsFailed from error


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
