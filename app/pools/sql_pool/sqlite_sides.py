"""The two sides of a SQLite database: for threads, and for the tasks of one event loop."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from app.pools.core.bucket import Entry, Limits
from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.lease_pool import LeasePool, Record
from app.pools.sql_pool.rows import Row, rows_from
from app.pools.sql_pool.sqlite import Connection, Source
from app.pools.sql_pool.statements import Effect, Parameters, prepare


class SQLiteSync:
    """Connections for threads: an Engine, and the driver-level calls.

    Args:
        config: the database.
        limits: the cap and the times.
        memory_name: tells this pool's ``:memory:`` from that of another pool.
    """

    def __init__(self, config: DatabaseConfig, limits: Limits, memory_name: str) -> None:
        self.source = Source(config, f"{memory_name}-{config.application_name}")
        # An in-memory database lives as long as a connection to it, so one stays outside the bucket.
        self._anchor = self.source.connect() if config.in_memory else None
        self.engine = create_engine(
            URL.create("sqlite", database=config.database),
            creator=self.source.connect,
            poolclass=LeasePool,
            label=config.label,
            limits=limits,
            lend=_begin_with_statements,
            take_back=_autocommit,
        )
        pool = self.engine.pool
        assert isinstance(pool, LeasePool)
        self.bucket = pool.bucket

    def execute(self, sql: str, params: Parameters, timeout: float | None) -> list[Row]:
        """Execute one statement in autocommit mode and return its rows."""
        statement = prepare(sql, "qmark")
        if params or statement.names:
            params = statement.bind(params)
        entry = self.bucket.checkout(timeout)
        record = entry.resource
        connection: Any = record.dbapi_connection
        try:
            cursor = record.cursor
            if cursor is None:
                cursor = record.cursor = connection.cursor(sqlite3.Cursor)
            if statement.effect is Effect.READ:
                values = cursor.execute(statement.text, params).fetchall()
            else:
                values = self._write(connection, cursor, statement.text, params, statement.effect)
            rows = rows_from(cursor.description, values) if cursor.description else []
        except BaseException as error:
            self._failed(entry, error)
            raise
        self.bucket.give_back(entry)
        return rows

    @staticmethod
    def _write(connection: Connection, cursor: sqlite3.Cursor, sql: str, params: Any, effect: Effect) -> list[Any]:
        connection.before(effect)
        try:
            return cursor.execute(sql, params).fetchall()
        finally:
            connection.after()

    def execute_many(self, sql: str, rows: Iterable[Parameters], timeout: float | None) -> int:
        """Execute one statement for each set of parameters in one transaction; return the number of changes."""
        statement = prepare(sql, "qmark")
        entry = self.bucket.checkout(timeout)
        connection: Any = entry.resource.dbapi_connection
        try:
            cursor = connection.cursor(sqlite3.Cursor)
            connection.lock()
            cursor.execute("BEGIN IMMEDIATE")
            cursor.executemany(statement.text, map(statement.bind, rows))
            connection.commit()
            count: int = cursor.rowcount
        except BaseException as error:
            self._failed(entry, error)
            raise
        self.bucket.give_back(entry)
        return count

    def _failed(self, entry: Entry[Record], error: BaseException) -> None:
        """Give a connection back after a failure: a faulty statement does not cost it, an interruption does."""
        record = entry.resource
        record.cursor = None
        connection = record.dbapi_connection
        try:
            if connection is not None and isinstance(error, Exception):
                connection.rollback()
                self.bucket.give_back(entry)
                return
        except sqlite3.Error:
            pass
        self.bucket.discard(entry)

    def close(self) -> None:
        """Close what is not in the bucket."""
        if self._anchor is not None:
            self._anchor.close()


class SQLiteAsync:
    """Connections for the tasks of one event loop: an AsyncEngine."""

    def __init__(self, config: DatabaseConfig, limits: Limits, memory_name: str, source: Source) -> None:
        self.engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=source.uri, query={"uri": "true"}),
            connect_args=source.connect_args,
            poolclass=LeasePool,
            label=f"{config.label} (async)",
            limits=limits,
            lend=_begin_with_statements,
            close=_stop,
        )
        pool = self.engine.sync_engine.pool
        assert isinstance(pool, LeasePool)
        self.bucket = pool.bucket

    def close(self) -> None:
        """Do nothing: the bucket has closed all there is."""


def _begin_with_statements(connection: Any) -> None:
    connection.isolation_level = ""


def _autocommit(connection: Any) -> None:
    connection.isolation_level = None


def _stop(record: Record) -> None:
    """Close an aiosqlite connection from any thread, also when its event loop is closed."""
    connection = record.driver_connection
    if connection is not None:
        record.dbapi_connection = None
        connection.stop()
