"""The SQL pool: connections of many databases, leased for one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from app.pools.core.allowed import require_seconds
from app.pools.core.defaults import DefaultPool
from app.pools.core.managed import ManagedPool
from app.pools.core.settings import SQLPoolSettings
from app.pools.sql_pool.arguments import Retry, require_count
from app.pools.sql_pool.async_side import AsyncSide
from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.connections import ConnectionBucket
from app.pools.sql_pool.leases import Lease
from app.pools.sql_pool.lending import (
    lend_connection,
    lend_connection_async,
    lend_session,
    lend_session_async,
    lend_transaction,
    lend_transaction_async,
)
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.sides import Sides, abandon
from app.pools.sql_pool.statements import Parameters
from app.pools.sql_pool.sync_side import SyncSide


class SQLPool(ManagedPool):
    """Connections of every database that is asked for, each leased exclusively for one call.

    Args:
        settings: the caps and times; from the environment, ``.env`` and ``poolwire.toml`` unless given.
    """

    name = "sql"

    def __init__(self, settings: SQLPoolSettings | None = None) -> None:
        self.settings = settings or SQLPoolSettings()
        super().__init__(sweep_interval=self.settings.health_check_interval)
        self._sides = Sides(self.settings)
        # What each call looks up, kept here: a step to it by way of the sides would show.
        self._sync_sides = self._sides.for_threads
        self._async_sides = self._sides.for_loops

    # Queries

    def execute_query(
        self,
        config: DatabaseConfig,
        sql: str,
        params: Parameters = (),
        timeout: float | None = None,
        retry: Retry | None = None,
    ) -> list[Row]:
        """Execute one statement, committed at once, and return its rows.

        Args:
            config: the database.
            sql: the statement, with ``?`` or ``:name`` placeholders whatever the database; ``??`` is a literal ``?``.
            params: a sequence for ``?``, a mapping for ``:name``.
            timeout: seconds for the whole call; the statement is cancelled on the server then.
            retry: ``"read"`` executes a statement that only reads a second time if its connection was lost.

        Returns:
            the rows, if the database returned any (``SELECT``, ``RETURNING``, ``PRAGMA``...), else an empty list.

        Raises:
            PoolTimeout: no connection became free in time.
            QueryTimeout: the statement did not end in time.
            DatabaseUnavailable: the database cannot be reached, or the connection was lost.
        """
        side = self._sync_sides.get(config)
        if side is None or not self._running:
            side = self._sync(config)
        return side.execute(sql, params, timeout, retry)

    async def execute_query_async(
        self,
        config: DatabaseConfig,
        sql: str,
        params: Parameters = (),
        timeout: float | None = None,
        retry: Retry | None = None,
    ) -> list[Row]:
        """Do what ``execute_query`` does without blocking the event loop."""
        return await self._async(config).execute(sql, params, timeout, retry)

    def execute_many(
        self, config: DatabaseConfig, sql: str, rows: Iterable[Parameters], timeout: float | None = None
    ) -> int:
        """Execute one statement for each set of parameters, all in one transaction.

        Args:
            config: the database.
            sql: the statement, with ``?`` or ``:name`` placeholders.
            rows: any iterable of sequences or mappings; read while the transaction runs.
            timeout: seconds for the whole call.

        Returns:
            how many sets of parameters there were.
        """
        return self._sync(config).execute_many(sql, rows, timeout)

    async def execute_many_async(
        self, config: DatabaseConfig, sql: str, rows: Iterable[Parameters], timeout: float | None = None
    ) -> int:
        """Do what ``execute_many`` does without blocking the event loop."""
        return await self._async(config).execute_many(sql, rows, timeout)

    def copy_rows(
        self,
        config: DatabaseConfig,
        table: str,
        columns: Sequence[str],
        rows: Iterable[Parameters],
        timeout: float | None = None,
    ) -> int:
        """Store many rows, all in one transaction, by the fastest way that the database has.

        Args:
            config: the database.
            table: its name, with or without a schema (``audit.events``).
            columns: the names of the columns, in the order of the values.
            rows: any iterable of sequences, or of mappings from the columns' names; read while they are sent.
            timeout: seconds for the whole call.

        Returns:
            how many rows there were.

        Raises:
            KeyError: a mapping has no value for a column.
            TypeError: a row, or the columns, are one string.
            ValueError: there are no columns.
        """
        return self._sync(config).copy_rows(table, columns, rows, timeout)

    async def copy_rows_async(
        self,
        config: DatabaseConfig,
        table: str,
        columns: Sequence[str],
        rows: Iterable[Parameters],
        timeout: float | None = None,
    ) -> int:
        """Do what ``copy_rows`` does without blocking the event loop."""
        return await self._async(config).copy_rows(table, columns, rows, timeout)

    def stream(
        self,
        config: DatabaseConfig,
        sql: str,
        params: Parameters = (),
        batch: int = 1000,
        timeout: float | None = None,
    ) -> Iterator[Row]:
        """Yield a query's rows as they are fetched, ``batch`` at a time, so that memory stays bounded.

        The connection is the iterator's until its last row, or until its ``close()``.

        Args:
            config: the database.
            sql: a query.
            params: a sequence for ``?``, a mapping for ``:name``.
            batch: how many rows are fetched at a time.
            timeout: seconds to wait for a free connection, the pool's ``checkout_timeout`` unless given.

        Raises:
            ConfigError: ``batch`` is no int from 1 up, or ``timeout`` no number.
        """
        require_count(batch)
        require_seconds(timeout)
        return self._sync(config).stream(sql, params, batch, timeout)

    def stream_async(
        self,
        config: DatabaseConfig,
        sql: str,
        params: Parameters = (),
        batch: int = 1000,
        timeout: float | None = None,
    ) -> AsyncIterator[Row]:
        """Do what ``stream`` does, for ``async for``."""
        require_count(batch)
        require_seconds(timeout)
        return self._async(config).stream(sql, params, batch, timeout)

    # Leases

    def connection(self, config: DatabaseConfig, timeout: float | None = None) -> Lease[Connection, AsyncConnection]:
        """Lease a SQLAlchemy connection: ``with`` gives a ``Connection``, ``async with`` an ``AsyncConnection``.

        What is not committed when the block ends is rolled back. On SQLite a transaction begins with the first
        statement, as a reader when that reads; for read-modify-write use ``transaction``.

        Args:
            config: the database.
            timeout: seconds to wait for a free connection, the pool's ``checkout_timeout`` unless given.
        """
        require_seconds(timeout)
        return Lease(
            lambda site: lend_connection(self._sync(config), timeout, site),
            lambda site: lend_connection_async(self._async(config), timeout, site),
        )

    def transaction(
        self, config: DatabaseConfig, readonly: bool = False, timeout: float | None = None
    ) -> Lease[Connection, AsyncConnection]:
        """Lease a connection in a transaction, committed when the block ends and rolled back when it fails.

        On SQLite it is the only writer from its start (``BEGIN IMMEDIATE``); with ``readonly`` it is a snapshot
        that hinders nobody and refuses to write.

        Args:
            config: the database.
            readonly: whether the transaction may only read.
            timeout: seconds to wait for a free connection, the pool's ``checkout_timeout`` unless given.
        """
        require_seconds(timeout)
        return Lease(
            lambda site: lend_transaction(self._sync(config), readonly, timeout, site),
            lambda site: lend_transaction_async(self._async(config), readonly, timeout, site),
        )

    def session(self, config: DatabaseConfig, timeout: float | None = None) -> Lease[Session, AsyncSession]:
        """Lease an ORM session: ``with`` gives a ``Session``, ``async with`` an ``AsyncSession``.

        What is not committed when the block ends is rolled back. Objects stay readable after a commit and after
        the block (``expire_on_commit`` is off).

        Args:
            config: the database.
            timeout: seconds to wait for a free connection, the pool's ``checkout_timeout`` unless given.
        """
        require_seconds(timeout)
        return Lease(
            lambda site: lend_session(self._sync(config), timeout, site),
            lambda site: lend_session_async(self._async(config), timeout, site),
        )

    # Databases

    def warm_up(self, config: DatabaseConfig) -> None:
        """Open the least number of connections of a database now, so that the first callers need not wait.

        Raises:
            DatabaseUnavailable: the database cannot be reached, or refuses.
        """
        bucket = self._sync(config).bucket
        bucket.fill(max(1, bucket.limits.min_idle))

    def pause(self, config: DatabaseConfig | None = None) -> None:
        """Lend no connection of a database, or of any, until ``resume``; callers wait, up to their timeouts."""
        if config is None:
            with self._lock:
                self._sides.note_pause_of_all()
            super().pause()
            return
        with self._lock:  # for all of it: a stop in between would forget what is paused
            self._sync(config)
            self._sides.note_pause(config)
            sides = self._sides.of(config)
        for side in sides:
            side.bucket.pause()

    def resume(self, config: DatabaseConfig | None = None) -> None:
        """Lend connections of a paused database, or of all, again."""
        if config is None:
            with self._lock:
                self._sides.note_resume_of_all()
            super().resume()
            return
        with self._lock:  # as above
            self._sync(config)
            self._sides.note_resume(config, self._paused)
            sides = self._sides.of(config)
        for side in sides:
            side.bucket.resume()

    def engine(self, config: DatabaseConfig) -> Engine:
        """Return the SQLAlchemy Engine of a database, whose connections are the pool's."""
        return self._sync(config).engine

    def async_engine(self, config: DatabaseConfig) -> AsyncEngine:
        """Return the AsyncEngine of a database for the running event loop, whose connections are the pool's."""
        return self._async(config).engine

    def _sync(self, config: DatabaseConfig) -> SyncSide:
        side = self._sync_sides.get(config)
        if side is not None and self._running:
            return side
        with self._lock:
            self._ensure_running()  # under the lock: what comes after a stop has begun, it would not close
            return self._sides.open(config, self._hold_back)

    def _async(self, config: DatabaseConfig) -> AsyncSide:
        loop = asyncio.get_running_loop()
        sides = self._async_sides.get(loop)
        side = None if sides is None else sides.get(config)
        if side is not None and self._running:
            return side
        self._leave_closed_loops()
        with self._lock:
            self._ensure_running()  # as above
            return self._sides.open_async(loop, config, self._hold_back)

    # Life

    def _leave_closed_loops(self) -> None:
        """Close the connections of event loops that are no more."""
        with self._lock:
            left = self._sides.take_those_of_closed_loops()
        abandon(left)

    def _buckets(self) -> list[ConnectionBucket]:
        with self._lock:
            return [side.bucket for side in self._sides.all()]

    def _refuse(self) -> None:
        for bucket in self._buckets():
            bucket.refuse()

    def _drain(self, deadline: float) -> list[str]:
        self._leave_closed_loops()
        holders = [line for bucket in self._buckets() for line in bucket.drain(deadline - time.monotonic())]
        with self._lock:
            closing = self._sides.end()
        for close in closing:
            close()
        return holders

    def _figures(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return [(bucket.label, bucket.stats()) for bucket in self._buckets()]

    def sweep(self) -> None:
        """Close what has expired, ask what has been idle for long, and report leases held too long."""
        self._leave_closed_loops()
        for bucket in self._buckets():
            bucket.sweep()

    def forget_after_fork(self) -> None:
        """Start empty in a child process."""
        super().forget_after_fork()
        for bucket in self._buckets():
            bucket.forget_after_fork()
        self._sides.clear()


_default = DefaultPool(SQLPool)


def get_sql_pool() -> SQLPool:
    """Return the process's SQL pool; after it was stopped, a new one."""
    return _default.get()
