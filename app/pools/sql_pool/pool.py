"""The SQL pool: connections of many databases, leased for one call."""

from __future__ import annotations

import asyncio
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from app.pools.core.bucket import NEVER, Limits
from app.pools.core.defaults import DefaultPool
from app.pools.core.holders import CallSite
from app.pools.core.managed import ManagedPool
from app.pools.core.settings import SQLPoolSettings
from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.lease_pool import requested
from app.pools.sql_pool.leases import Lease
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.sqlite_sides import SQLiteAsync, SQLiteSync
from app.pools.sql_pool.statements import Parameters

T = TypeVar("T")

_FAIR_AFTER = 0.01


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
        self._reset()

    def _reset(self) -> None:
        self._memory_name = uuid.uuid4().hex
        self._sync_sides: dict[DatabaseConfig, SQLiteSync] = {}
        self._async_sides: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[DatabaseConfig, SQLiteAsync]] = (
            weakref.WeakKeyDictionary()
        )
        self._executor: ThreadPoolExecutor | None = None

    # Queries

    def execute_query(
        self, config: DatabaseConfig, sql: str, params: Parameters = (), timeout: float | None = None
    ) -> list[Row]:
        """Execute one statement, committed at once, and return its rows.

        Args:
            config: the database.
            sql: the statement, with ``?`` or ``:name`` placeholders whatever the database; ``??`` is a literal ``?``.
            params: a sequence for ``?``, a mapping for ``:name``.
            timeout: seconds for the call.

        Returns:
            the rows, if the database returned any (``SELECT``, ``RETURNING``, ``PRAGMA``...), else an empty list.

        Raises:
            PoolTimeout: no connection became free in time.
            DatabaseUnavailable: the database cannot be reached, or the connection was lost.
        """
        return self._sync(config).execute(sql, params, timeout)

    async def execute_query_async(
        self, config: DatabaseConfig, sql: str, params: Parameters = (), timeout: float | None = None
    ) -> list[Row]:
        """Do what ``execute_query`` does without blocking the event loop."""
        return await self._in_thread(self.execute_query, config, sql, params, timeout)

    def execute_many(
        self, config: DatabaseConfig, sql: str, rows: Iterable[Parameters], timeout: float | None = None
    ) -> int:
        """Execute one statement for each set of parameters, all in one transaction.

        Args:
            config: the database.
            sql: the statement, with ``?`` or ``:name`` placeholders.
            rows: any iterable of sequences or mappings; read while the transaction runs.
            timeout: seconds for the call.

        Returns:
            how many rows were changed.
        """
        return self._sync(config).execute_many(sql, rows, timeout)

    async def execute_many_async(
        self, config: DatabaseConfig, sql: str, rows: Iterable[Parameters], timeout: float | None = None
    ) -> int:
        """Do what ``execute_many`` does without blocking the event loop."""
        return await self._in_thread(self.execute_many, config, sql, rows, timeout)

    # Leases

    def connection(self, config: DatabaseConfig, timeout: float | None = None) -> Lease[Connection, AsyncConnection]:
        """Lease a SQLAlchemy connection: ``with`` gives a ``Connection``, ``async with`` an ``AsyncConnection``.

        What is not committed when the block ends is rolled back. On SQLite a transaction begins with the first
        statement, as a reader when that reads; for read-modify-write use ``transaction``.

        Args:
            config: the database.
            timeout: seconds to wait for a free connection, the pool's ``checkout_timeout`` unless given.
        """
        return Lease(partial(self._connection, config, timeout), partial(self._connection_async, config, timeout))

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
            partial(self._transaction, config, readonly, timeout),
            partial(self._transaction_async, config, readonly, timeout),
        )

    def session(self, config: DatabaseConfig, timeout: float | None = None) -> Lease[Session, AsyncSession]:
        """Lease an ORM session: ``with`` gives a ``Session``, ``async with`` an ``AsyncSession``.

        What is not committed when the block ends is rolled back. Objects stay readable after a commit and after
        the block (``expire_on_commit`` is off).

        Args:
            config: the database.
            timeout: seconds to wait for a free connection, the pool's ``checkout_timeout`` unless given.
        """
        return Lease(partial(self._session, config, timeout), partial(self._session_async, config, timeout))

    @contextmanager
    def _connection(self, config: DatabaseConfig, timeout: float | None, site: CallSite) -> Iterator[Connection]:
        engine = self._sync(config).engine
        with requested(timeout, site):
            connection = engine.connect()
        with connection:
            yield connection

    @asynccontextmanager
    async def _connection_async(
        self, config: DatabaseConfig, timeout: float | None, site: CallSite
    ) -> AsyncIterator[AsyncConnection]:
        engine = self._async(config).engine
        with requested(timeout, site):
            connection = await engine.connect()
        try:
            yield connection
        finally:
            # Shielded: a task that is cancelled again here still gives its connection back.
            await asyncio.shield(connection.close())

    @contextmanager
    def _transaction(
        self, config: DatabaseConfig, readonly: bool, timeout: float | None, site: CallSite
    ) -> Iterator[Connection]:
        with self._connection(config, timeout, site) as connection, connection.begin():
            connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")
            yield connection

    @asynccontextmanager
    async def _transaction_async(
        self, config: DatabaseConfig, readonly: bool, timeout: float | None, site: CallSite
    ) -> AsyncIterator[AsyncConnection]:
        async with self._connection_async(config, timeout, site) as connection, connection.begin():
            await connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _session(self, config: DatabaseConfig, timeout: float | None, site: CallSite) -> Iterator[Session]:
        with (
            self._connection(config, timeout, site) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session

    @asynccontextmanager
    async def _session_async(
        self, config: DatabaseConfig, timeout: float | None, site: CallSite
    ) -> AsyncIterator[AsyncSession]:
        async with (
            self._connection_async(config, timeout, site) as connection,
            AsyncSession(connection, expire_on_commit=False) as session,
        ):
            yield session

    # Databases

    def _sync(self, config: DatabaseConfig) -> SQLiteSync:
        side = self._sync_sides.get(config)
        if side is None or not self._running:
            self._ensure_running()
            with self._lock:
                side = self._sync_sides.get(config)
                if side is None:
                    side = self._sync_sides[config] = SQLiteSync(config, self._limits, self._memory_name)
        return side

    def _async(self, config: DatabaseConfig) -> SQLiteAsync:
        loop = asyncio.get_running_loop()
        self._ensure_running()
        with self._lock:
            sides = self._async_sides.setdefault(loop, {})
            side = sides.get(config)
            if side is None:
                side = sides[config] = SQLiteAsync(config, self._limits, self._memory_name, self._sync(config).source)
        return side

    async def _in_thread(self, call: Callable[..., T], *args: Any) -> T:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self.settings.max_connections, thread_name_prefix="poolwire-sql")
            executor = self._executor
        return await asyncio.get_running_loop().run_in_executor(executor, call, *args)

    # Life

    def _sides(self) -> list[SQLiteSync | SQLiteAsync]:
        with self._lock:
            return [
                *self._sync_sides.values(),
                *(side for sides in self._async_sides.values() for side in sides.values()),
            ]

    def _refuse(self) -> None:
        for side in self._sides():
            side.bucket.refuse()

    def _drain(self, deadline: float) -> list[str]:
        sides = self._sides()
        holders = [line for side in sides for line in side.bucket.drain(deadline - time.monotonic())]
        with self._lock:
            executor = self._executor
            self._reset()
        for side in sides:
            side.close()
        if executor is not None:
            executor.shutdown(wait=False)
        return holders

    def _figures(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return [(side.bucket.label, side.bucket.stats()) for side in self._sides()]

    def sweep(self) -> None:
        """Close what has expired and report leases held too long."""
        for side in self._sides():
            side.bucket.sweep()

    def forget_after_fork(self) -> None:
        """Start empty in a child process."""
        super().forget_after_fork()
        for side in self._sides():
            side.bucket.forget_after_fork()
        self._reset()


_default = DefaultPool(SQLPool)


def get_sql_pool() -> SQLPool:
    """Return the process's SQL pool; after it was stopped, a new one."""
    return _default.get()
