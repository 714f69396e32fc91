"""The SQL pool: connections of many databases, leased for one call."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from app.pools.core.bucket import NEVER, Bucket, Limits
from app.pools.core.budget import Budget
from app.pools.core.defaults import DefaultPool
from app.pools.core.managed import ManagedPool
from app.pools.core.settings import SQLPoolSettings
from app.pools.sql_pool.aiosqlite_driver import AiosqliteDriver
from app.pools.sql_pool.arguments import Retry, require_count
from app.pools.sql_pool.async_side import AsyncSide
from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.leases import Lease
from app.pools.sql_pool.lending import (
    lend_connection,
    lend_connection_async,
    lend_session,
    lend_session_async,
    lend_transaction,
    lend_transaction_async,
)
from app.pools.sql_pool.native_side import NativeSide
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.sqlite_driver import SQLiteDriver
from app.pools.sql_pool.sqlite_forks import register
from app.pools.sql_pool.statements import Parameters
from app.pools.sql_pool.sync_side import SyncSide
from app.pools.sql_pool.threaded_side import ThreadedSide

log = logging.getLogger(__name__)

_FAIR_AFTER = 0.01
_MOST_THREADS = 10_000
"""More than there are connections: a call that has one never waits for a thread."""


class SQLPool(ManagedPool):
    """Connections of every database that is asked for, each leased exclusively for one call.

    Args:
        settings: the caps and times; from the environment, ``.env`` and ``poolwire.toml`` unless given.
    """

    name = "sql"

    def __init__(self, settings: SQLPoolSettings | None = None) -> None:
        self.settings = settings or SQLPoolSettings()
        super().__init__(sweep_interval=self.settings.health_check_interval)
        self._limits = Limits(
            capacity=self.settings.max_connections,
            checkout_timeout=self.settings.checkout_timeout,
            min_idle=self.settings.min_connections,
            idle_timeout=self.settings.max_idle_time,
            max_lifetime=self.settings.max_lifetime or NEVER,
            fair_after=_FAIR_AFTER,
            leak_threshold=self.settings.leak_threshold or NEVER,
        )
        self._paused_alone: set[DatabaseConfig] = set()
        self._resumed_alone: set[DatabaseConfig] = set()  # while all others are paused
        self._reset()

    def _reset(self) -> None:
        self._memory_name = uuid.uuid4().hex
        self._sync_sides: dict[DatabaseConfig, SyncSide] = {}
        # Held strongly until a loop is found closed: what its connections leave open is closed by then only.
        self._async_sides: dict[asyncio.AbstractEventLoop, dict[DatabaseConfig, AsyncSide]] = {}
        self._budgets: dict[DatabaseConfig, Budget] = {}
        self._executor: ThreadPoolExecutor | None = None

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
            ConfigError: ``batch`` is no int from 1 up.
        """
        require_count(batch)
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
                self._resumed_alone.clear()
            super().pause()
            return
        with self._lock:
            self._ensure_running()
            self._paused_alone.add(config)
            self._resumed_alone.discard(config)
        for side in self._sides_of(config):
            side.bucket.pause()

    def resume(self, config: DatabaseConfig | None = None) -> None:
        """Lend connections of a paused database, or of all, again."""
        if config is None:
            with self._lock:
                self._paused_alone.clear()
                self._resumed_alone.clear()
            super().resume()
            return
        with self._lock:
            self._paused_alone.discard(config)
            if self._paused:
                self._resumed_alone.add(config)
        for side in self._sides_of(config):
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
            side = self._sync_sides.get(config)
            if side is None:
                side = self._sync_sides[config] = self._make_sync(config)
                self._take_charge(side, config)
        return side

    def _make_sync(self, config: DatabaseConfig) -> SyncSide:
        _check_class(config)
        if config.backend == "sqlite":
            return SyncSide(SQLiteDriver(config, self._memory_name), self._limits, config.label, self._budget(config))
        from app.pools.sql_pool.psycopg_driver import PsycopgDriver  # only who uses PostgreSQL needs the extra

        return SyncSide(PsycopgDriver(config), self._limits, config.label, self._budget(config))

    def _async(self, config: DatabaseConfig) -> AsyncSide:
        loop = asyncio.get_running_loop()
        sides = self._async_sides.get(loop)
        side = None if sides is None else sides.get(config)
        if side is not None and self._running:
            return side
        self._leave_closed_loops()
        with self._lock:
            self._ensure_running()  # as above
            sides = self._async_sides.setdefault(loop, {})
            side = sides.get(config)
            if side is None:
                side = sides[config] = self._make_async(config)
                self._take_charge(side, config)
        return side

    def _make_async(self, config: DatabaseConfig) -> AsyncSide:
        _check_class(config)
        if config.backend == "sqlite":
            threads = self._sync(config)
            assert isinstance(threads.driver, SQLiteDriver)
            driver = AiosqliteDriver(config, threads.driver.source)
            return ThreadedSide(driver, self._limits, config.label, self._budget(config), threads, self._threads())
        from app.pools.sql_pool.asyncpg_driver import AsyncpgDriver  # only who uses PostgreSQL needs the extra

        return NativeSide(AsyncpgDriver(config), self._limits, config.label, self._budget(config))

    def _take_charge(self, side: SyncSide | AsyncSide, config: DatabaseConfig) -> None:
        """Do with a new side, under the lock, what was done with the others before it came."""
        if config not in self._resumed_alone:
            self._hold_back(side.bucket)
        if config in self._paused_alone:
            side.bucket.pause()
        if config.backend == "sqlite":
            register.add_bucket(side.bucket)

    def _budget(self, config: DatabaseConfig) -> Budget:
        """Return the cap that the connections of a database have together, those for threads and for tasks."""
        budget = self._budgets.get(config)
        if budget is None:
            budget = self._budgets[config] = Budget(self.settings.max_connections, sharers="its threads and tasks")
        return budget

    def _leave_closed_loops(self) -> None:
        """Close the connections of event loops that are no more."""
        with self._lock:
            closed = [self._async_sides.pop(loop) for loop in list(self._async_sides) if loop.is_closed()]
        for sides in closed:
            for side in sides.values():
                side.bucket.refuse()
                for holder in side.bucket.end_leases():
                    log.warning("a connection was leased when its event loop closed, and is closed, too: %s", holder)

    def _threads(self) -> ThreadPoolExecutor:
        """Return the threads for what tasks do with SQLite connections, of which there is a limited number."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="poolwire-sql")
        return self._executor

    # Life

    def _sides(self) -> list[SyncSide | AsyncSide]:
        with self._lock:
            return [
                *self._sync_sides.values(),
                *(side for sides in self._async_sides.values() for side in sides.values()),
            ]

    def _sides_of(self, config: DatabaseConfig) -> list[SyncSide | AsyncSide]:
        self._sync(config)
        with self._lock:
            asynchronous = [sides[config] for sides in self._async_sides.values() if config in sides]
            return [self._sync_sides[config], *asynchronous]

    def _buckets(self) -> Iterable[Bucket[Any]]:
        return [side.bucket for side in self._sides()]

    def _refuse(self) -> None:
        for side in self._sides():
            side.bucket.refuse()

    def _drain(self, deadline: float) -> list[str]:
        self._leave_closed_loops()
        sides = self._sides()
        holders = [line for side in sides for line in side.bucket.drain(deadline - time.monotonic())]
        with self._lock:
            executor, threads = self._executor, list(self._sync_sides.values())
            self._paused_alone.clear()
            self._resumed_alone.clear()
            self._reset()
        for side in threads:
            side.close()
        if executor is not None:
            executor.shutdown(wait=False)
        return holders

    def _figures(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return [(side.bucket.label, side.bucket.stats()) for side in self._sides()]

    def sweep(self) -> None:
        """Close what has expired, ask what has been idle for long, and report leases held too long."""
        self._leave_closed_loops()
        for side in self._sides():
            side.bucket.sweep()

    def forget_after_fork(self) -> None:
        """Start empty in a child process."""
        super().forget_after_fork()
        for side in self._sides():
            side.bucket.forget_after_fork()
        self._reset()


def _check_class(config: object) -> None:
    if not isinstance(config, DatabaseConfig):  # not shown: it may be a URL, password and all
        raise TypeError(
            f"a DatabaseConfig is needed, not {type(config).__name__}; get_sqlite_config(path) and "
            "DatabaseConfig.from_url(url) make one"
        )


_default = DefaultPool(SQLPool)


def get_sql_pool() -> SQLPool:
    """Return the process's SQL pool; after it was stopped, a new one."""
    return _default.get()
