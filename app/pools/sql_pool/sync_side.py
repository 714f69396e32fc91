"""A database's side for threads: an Engine, and the driver-level calls that do without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from threading import get_ident
from typing import Any, TypeVar

from app.pools.core.allowed import require_seconds
from app.pools.core.bucket import Entry, Limits
from app.pools.core.budget import Budget
from app.pools.errors import DatabaseUnavailable, DatabaseUnreachable, QueryTimeout
from app.pools.sql_pool.arguments import Retry, require_known
from app.pools.sql_pool.cleaning import Cleaner, commit_each
from app.pools.sql_pool.connections import ConnectionBucket
from app.pools.sql_pool.drivers import SyncDriver
from app.pools.sql_pool.failures import reason
from app.pools.sql_pool.interruption import Interruption
from app.pools.sql_pool.lease_pool import LeasePool
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.statements import Bound, Parameters, Statement, preparer
from app.pools.sql_pool.unfinished import report_unfinished, watch_writes
from app.pools.sql_pool.watchdog import Watch

T = TypeVar("T")


class SyncSide:
    """Connections of one database for threads.

    Args:
        driver: the driver, which knows the database.
        limits: the cap and the times.
        label: the database's name, without secrets.
        budget: the cap that the database's sides have together.
    """

    def __init__(self, driver: SyncDriver, limits: Limits, label: str, budget: Budget | None) -> None:
        self.driver = driver
        self.label = label
        self.engine = driver.engine(limits, budget)
        self.lending_engine = watch_writes(self.engine)
        pool = self.engine.pool
        assert isinstance(pool, LeasePool)
        assert isinstance(pool.cleaner, Cleaner)
        self.bucket: ConnectionBucket = pool.bucket
        self._clean = pool.cleaner.clean
        self.prepare = preparer(driver.style)
        self._fetch = driver.fetch
        self._in_transaction = driver.in_transaction

    def execute(
        self,
        sql: str,
        params: Parameters,
        timeout: float | None,
        retry: Retry | None,
    ) -> list[Row]:
        """Execute one statement in autocommit mode and return its rows."""
        statement = self.prepare(sql)
        if not statement.plain or params.__class__ is not tuple:
            params = statement.bind(params)
            if statement.residue:
                return self._execute_carefully(statement, params, timeout, retry)
        if timeout is not None or retry is not None:
            return self._execute_carefully(statement, params, timeout, retry)
        bucket = self.bucket
        entry = bucket.checkout(None, get_ident())
        record = entry.resource
        try:
            if record.transactional:
                commit_each(self.driver, record)
            rows = self._fetch(record, statement, params)
            unfinished = not statement.reads and self._in_transaction(record)
        except BaseException as error:
            self._fail(entry, error)
            raise
        if unfinished:
            self._end(entry)
        else:
            bucket.give_back(entry)
        return rows

    def _execute_carefully(
        self,
        statement: Statement,
        params: Any,
        timeout: float | None,
        retry: Retry | None,
    ) -> list[Row]:
        def fetch(record: Record) -> list[Row]:
            return self._fetch(record, statement, params)

        require_known(retry)
        started = time.monotonic()
        try:
            return self._call(fetch, statement, timeout, started)
        except DatabaseUnreachable:
            raise
        except DatabaseUnavailable:
            if retry is None or not statement.reads:
                raise
        return self._call(fetch, statement, timeout, started)

    def execute_many(
        self,
        sql: str,
        rows: Iterable[Parameters],
        timeout: float | None,
    ) -> int:
        """Execute one statement for each set of parameters in one transaction; return how many there were."""
        statement = self.prepare(sql)
        counted = Bound.of(statement, rows)
        self._store(lambda record: self.driver.execute_many(record, statement, counted), statement, timeout, counted)
        return counted.count

    def copy_rows(
        self,
        table: str,
        columns: Sequence[str],
        rows: Iterable[Parameters],
        timeout: float | None,
    ) -> int:
        """Store many rows in one transaction; return how many there were."""
        counted = Bound.for_columns(columns, rows)
        self._store(lambda record: self.driver.copy_rows(record, table, columns, counted), None, timeout, counted)
        return counted.count

    def stream(self, sql: str, params: Parameters, batch: int, timeout: float | None) -> Iterator[Row]:
        """Yield a query's rows as the database finds them, holding a connection until the last or until closed."""
        statement = self.prepare(sql)
        bound = statement.bind(params)
        entry = self.bucket.checkout(timeout)
        with closing(self.batches(entry, statement, bound, batch)) as batches:
            for rows in batches:
                yield from rows

    def batches(
        self,
        entry: Entry[Record],
        statement: Statement,
        params: Sequence[Any],
        batch: int,
        interruption: Interruption | None = None,
    ) -> Generator[list[Row], None, None]:
        """Yield a query's rows in lists of ``batch``, with a connection that is given back at the end."""

        def fetch(record: Record) -> list[Row] | None:
            return next(found, None)

        try:
            with closing(self.driver.stream(entry.resource, statement, params, batch)) as found:
                while rows := self._work(fetch, statement, entry.resource, interruption):
                    yield rows
        except GeneratorExit:
            self._clean(entry)
            raise
        except BaseException as error:
            self._fail(entry, error)
            raise
        self._clean(entry)

    def _store(
        self, work: Callable[[Record], None], statement: Statement | None, timeout: float | None, rows: Bound
    ) -> None:
        self._call(work, statement, timeout, time.monotonic(), rows)

    def _call(
        self,
        work: Callable[[Record], T],
        statement: Statement | None,
        timeout: float | None,
        started: float,
        rows: Bound | None = None,
    ) -> T:
        """Do ``work`` with a connection; the arguments are those of ``serve``."""
        entry = self.bucket.checkout(self.longest_wait(timeout, started), get_ident())
        return self.serve(entry, work, statement, started, timeout, rows=rows)

    def longest_wait(self, timeout: float | None, started: float) -> float | None:
        """Return how many seconds a call that may take ``timeout`` since it ``started`` waits for a connection."""
        require_seconds(timeout)
        if timeout is None:
            return None
        return min(started + timeout - time.monotonic(), self.bucket.limits.checkout_timeout)

    def ending(self, rows: Bound | None) -> Callable[[Record], None]:
        """Return what ends a call from another thread: what its connection executes, and the taking of its rows."""
        cancel = self.driver.cancel
        if rows is None:
            return cancel
        give_up = rows.give_up

        def end(record: Record) -> None:
            give_up()
            cancel(record)

        return end

    def serve(
        self,
        entry: Entry[Record],
        work: Callable[[Record], T],
        statement: Statement | None,
        started: float,
        timeout: float | None,
        interruption: Interruption | None = None,
        rows: Bound | None = None,
    ) -> T:
        """Do ``work`` with a connection, and give it back.

        Args:
            entry: the connection.
            work: what is to be done with it.
            statement: what ``work`` executes.
            started: when the call began, on the monotonic clock.
            timeout: seconds that the call may take since.
            interruption: the way to end it, if there is one.
            rows: what ``work`` stores, if it does.
        """
        record, driver = entry.resource, self.driver
        if timeout is None:
            try:
                result = self._work(work, statement, record, interruption)
            except BaseException as error:
                self._fail(entry, error)
                raise
            self._end(entry)
            return result
        end = self.ending(rows)
        watch = Watch(started + timeout, lambda: end(record), lambda: driver.cut(record))
        failure: BaseException | None = None
        try:
            with watch:
                result = self._work(work, statement, record, interruption)
        except BaseException as error:  # noqa: BLE001 - judged below, once the watchdog has let go
            failure = error
        if watch.expired:
            # The server may still act on the cancel a moment later, and hit who has the connection next.
            self.bucket.discard(entry)
            if failure is not None:
                raise QueryTimeout(self.label, timeout) from failure
            return result
        if failure is not None:
            self._fail(entry, failure)
            raise failure
        self._end(entry)
        return result

    def _work(
        self,
        work: Callable[[Record], T],
        statement: Statement | None,
        record: Record,
        interruption: Interruption | None,
    ) -> T:
        self._ready(record, statement)
        if interruption is None:
            return work(record)
        try:
            with interruption.during(record):
                return work(record)
        finally:
            self.driver.forget_cancel(record)

    def _ready(self, record: Record, statement: Statement | None) -> None:
        """Make a connection ready to execute a statement in autocommit mode."""
        commit_each(self.driver, record)
        if statement is not None and statement.residue:
            record.raw.residue |= statement.residue

    def _end(self, entry: Entry[Record]) -> None:
        """Give a connection back, and roll back the transaction that a statement's text has opened."""
        if self._in_transaction(entry.resource):
            report_unfinished(self.label, entry.site)
        self._clean(entry)

    def _fail(self, entry: Entry[Record], error: BaseException) -> None:
        """Give a connection back after a failure: a faulty statement does not cost it."""
        record = entry.resource
        record.fetcher = None
        if self.driver.lost(record, error):
            self.bucket.suspect_idle()
            self.bucket.discard(entry)
            if isinstance(error, Exception):
                raise DatabaseUnavailable(f"the connection to {self.label} was lost: {reason(error)}") from error
        elif isinstance(error, Exception):
            self._clean(entry)
        else:
            self.bucket.discard(entry)  # interrupted half-way: nobody knows what the server still sends

    def close(self) -> None:
        """Close what is not in the bucket."""
        self.driver.dispose()
