"""The side for tasks of a driver whose calls are coroutines, as those of asyncpg are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from app.pools.core.allowed import require_seconds
from app.pools.core.bucket import Entry, Limits
from app.pools.core.budget import Budget
from app.pools.errors import DatabaseUnavailable, DatabaseUnreachable, QueryTimeout
from app.pools.sql_pool.arguments import Retry, require_known
from app.pools.sql_pool.async_side import AsyncSide
from app.pools.sql_pool.drivers import AsyncDriver
from app.pools.sql_pool.failures import reason
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.statements import Bound, Parameters, Statement, preparer
from app.pools.sql_pool.unfinished import report_unfinished

T = TypeVar("T")

_CANCEL_SECONDS = 1.0
"""For how long a cancelled call waits for its connection to recover: a server that answers needs some milliseconds."""


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
        require_seconds(timeout)
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
            # A cancellation at the same moment stays one.
            if timeout is not None and limit.expired() and isinstance(error, Exception):
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
