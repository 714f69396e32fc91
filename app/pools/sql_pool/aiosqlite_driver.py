"""SQLite through aiosqlite, for an AsyncEngine: each connection has a thread, which waits in the loop's place."""

from __future__ import annotations

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.pools.core.bucket import Limits
from app.pools.core.budget import Budget
from app.pools.sql_pool import sqlite
from app.pools.sql_pool.aiosqlite_connection import Connection
from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.lease_pool import LeasePool
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.residue import LASTING
from app.pools.sql_pool.sqlite import BEGIN_READONLY, is_busy
from app.pools.sql_pool.sqlite_source import Source


class AiosqliteDriver:
    """aiosqlite connections.

    Args:
        config: the database.
        source: where connections come from, the same as for threads.
    """

    probed = False
    begin: str | None = "BEGIN IMMEDIATE"
    begin_readonly: str | None = BEGIN_READONLY

    def __init__(self, config: DatabaseConfig, source: Source) -> None:
        self._config = config
        self._source = source

    @staticmethod
    def residue(record: Record) -> int:
        """Return what statements have left on a connection."""
        return getattr(record.raw._connection, "residue", LASTING)  # one that its user has closed is of no more use

    def end_lease(self, record: Record) -> object:
        """Close the results that were not read to their end; return what statements have left."""
        raw: Connection = record.raw
        raw.end_lease()
        return self.residue(record)

    @staticmethod
    def in_transaction(record: Record) -> object:
        """Say whether a transaction is open."""
        return getattr(record.raw._connection, "in_transaction", True)  # its user has closed it

    async def clean(self, record: Record) -> bool:
        """Say that it cannot be done, as ``SQLiteDriver.reset``."""
        return False

    def engine(self, limits: Limits, budget: Budget | None) -> AsyncEngine:
        """Make the AsyncEngine on a ``LeasePool``."""
        return create_async_engine(
            URL.create("sqlite+aiosqlite", database=self._config.database),
            async_creator=self._connect,
            poolclass=LeasePool,
            label=f"{self._config.label} (async)",
            limits=limits,
            driver=self,
            budget=budget,
        )

    def _connect(self) -> Connection:
        return Connection(self._source.connect)

    def adopt(self, record: Record) -> None:
        """Begin transactions with statements: nobody else uses these connections."""
        assert record.dbapi_connection is not None
        record.dbapi_connection.isolation_level = ""
        connection: sqlite.Connection = record.raw._connection
        connection.lessee = lambda: () if (entry := record.lease()) is None else entry.site

    def lend(self, record: Record) -> None:
        """Do nothing: transactions begin with statements from the first on."""

    def close(self, record: Record) -> None:
        """Close a connection from any thread, also when its event loop is closed."""
        if record.dbapi_connection is not None:
            record.dbapi_connection = None
            record.raw.end()

    def permanent(self, error: Exception) -> bool:
        """Say yes: a file that cannot be opened stays so, unless somebody else has it at the moment."""
        return not is_busy(getattr(error, "orig", None) or error)
