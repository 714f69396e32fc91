"""SQLite as the pool's side for threads uses it."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from itertools import chain, islice
from operator import attrgetter
from typing import Any

from sqlalchemy import URL, Engine, create_engine

from app.pools.core.bucket import Limits
from app.pools.core.budget import Budget
from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.lease_pool import LeasePool
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.rows import Row, row_class_of
from app.pools.sql_pool.sqlite import BEGIN_READONLY, Connection, is_busy
from app.pools.sql_pool.sqlite_source import Source
from app.pools.sql_pool.statements import Statement, Style, quoted

_BATCH = 500


class SQLiteDriver:
    """sqlite3 for threads.

    Args:
        config: the database.
        memory_name: tells this pool's ``:memory:`` from that of another pool.
    """

    style: Style = "qmark"
    probed = False
    begin: str | None = "BEGIN IMMEDIATE"
    begin_readonly: str | None = BEGIN_READONLY
    in_transaction = attrgetter("raw.in_transaction")
    residue = attrgetter("raw.residue")

    def __init__(self, config: DatabaseConfig, memory_name: str) -> None:
        self.config = config
        self.source = Source(config, f"{memory_name}-{config.application_name}")
        # An in-memory database lives as long as a connection to it, so one stays outside the bucket.
        self._anchor = self.source.connect() if config.in_memory else None

    def engine(self, limits: Limits, budget: Budget | None) -> Engine:
        """Make the Engine on a ``LeasePool``."""
        return create_engine(
            URL.create("sqlite", database=self.config.database),
            creator=self.source.connect,
            poolclass=LeasePool,
            label=self.config.label,
            limits=limits,
            driver=self,
            budget=budget,
        )

    # The pool's part

    def adopt(self, record: Record) -> None:
        """Do nothing: a file needs no probe."""

    def lend(self, record: Record) -> None:
        """Begin transactions with statements from now on."""
        record.raw.isolation_level = ""

    def take_back(self, record: Record) -> None:
        """Commit each statement by itself from now on."""
        record.raw.isolation_level = None

    def end_lease(self, record: Record) -> object:
        """Close the results that were not read to their end; return what statements have left."""
        raw: Connection = record.raw
        raw.end_lease()
        return raw.residue

    def close(self, record: Record) -> None:
        """Close a connection."""
        raw, record.dbapi_connection = record.raw, None
        with suppress(sqlite3.Error):  # SQLite closes it in any case
            raw.close()

    def permanent(self, error: Exception) -> bool:
        """Say yes: a file that cannot be opened stays so, unless somebody else has it at the moment."""
        return not is_busy(getattr(error, "orig", None) or error)

    # The side's part

    def fetch(self, record: Record, statement: Statement, params: Sequence[Any]) -> list[Row]:
        """Execute one statement in autocommit mode and return its rows."""
        cursor = record.fetcher or self._cursor(record)
        try:
            if statement.reads:
                values = cursor.execute(statement.text, params).fetchall()
            else:
                raw: Connection = record.raw
                raw.before(statement.effect)
                try:
                    values = cursor.execute(statement.text, params).fetchall()
                finally:
                    raw.after()
        except sqlite3.OperationalError as error:
            record.raw.explain(error)
            raise
        if not values:
            return values
        described, row = statement.shape
        description = cursor.description
        if description != described:
            row = row_class_of(description, cursor)
            statement.shape = (description, row)
        return [row(values[0])] if len(values) == 1 else list(map(row, values))

    @staticmethod
    def _cursor(record: Record) -> sqlite3.Cursor:
        cursor: sqlite3.Cursor = record.raw.cursor(sqlite3.Cursor)
        record.fetcher = cursor
        return cursor

    def execute_many(self, record: Record, statement: Statement, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement for each set of parameters, in one transaction."""
        raw: Connection = record.raw
        with raw.writing() as cursor:
            cursor.executemany(statement.text, rows)

    def copy_rows(self, record: Record, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Store many rows by statements that store several each, in one transaction."""
        raw: Connection = record.raw
        most = min(_BATCH, raw.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(columns))
        insert = f"INSERT INTO {quoted(table)} ({', '.join(map(quoted, columns))}) VALUES "
        one = f"({', '.join('?' * len(columns))})"
        waiting = iter(rows)
        with raw.writing() as cursor:
            while batch := list(islice(waiting, most)):
                if any(len(row) != len(columns) for row in batch):
                    raise ValueError(f"a row has another number of values than the {len(columns)} columns")
                cursor.execute(insert + ", ".join([one] * len(batch)), list(chain.from_iterable(batch)))
                raw.check()

    def stream(
        self, record: Record, statement: Statement, params: Sequence[Any], batch: int
    ) -> Generator[list[Row], None, None]:
        """Yield a query's rows in batches, as SQLite finds them."""
        raw: Connection = record.raw
        cursor = raw.cursor(sqlite3.Cursor)
        raw.before(statement.effect)
        try:
            cursor.execute(statement.text, params)
            while values := cursor.fetchmany(batch):
                yield list(map(row_class_of(cursor.description, cursor), values))
        except sqlite3.OperationalError as error:
            raw.explain(error)
            raise
        finally:
            cursor.close()
            raw.after()

    def rollback(self, record: Record) -> None:
        """Roll back."""
        record.raw.rollback()

    def reset(self, record: Record) -> bool:
        """Say that it cannot be done: to open the file anew costs less than to know every pragma's default."""
        return False

    def lost(self, record: Record, error: BaseException) -> bool:
        """Say no: there is no server that could go away."""
        return False

    def cancel(self, record: Record) -> None:
        """Interrupt what the connection does, its wait for the writer lock included."""
        record.raw.give_up()

    def forget_cancel(self, record: Record) -> None:
        """Let the connection execute again."""
        record.raw.go_on()

    def cut(self, record: Record) -> None:
        """Interrupt once more, should the statement have begun since."""
        record.raw.give_up()

    def dispose(self) -> None:
        """Let an in-memory database end, and close the file of a database's writer lock."""
        self.source.writer.rest()
        if self._anchor is not None:
            self._anchor.close()
