"""A handle: the SQL pool and one database, for those who should not care about configs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from app.pools.sql_pool.arguments import Retry
from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.leases import Lease
from app.pools.sql_pool.pool import SQLPool
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.statements import Parameters


class Database:
    """The pool's calls for one database. It holds no connection: each call leases one.

    Args:
        pool: the SQL pool.
        config: the database.
    """

    def __init__(self, pool: SQLPool, config: DatabaseConfig) -> None:
        self.pool = pool
        self.config = config

    def __repr__(self) -> str:
        return f"Database({self.config.label!r})"

    def execute_query(
        self, sql: str, params: Parameters = (), timeout: float | None = None, retry: Retry | None = None
    ) -> list[Row]:
        """See ``SQLPool.execute_query``."""
        return self.pool.execute_query(self.config, sql, params, timeout, retry)

    async def execute_query_async(
        self, sql: str, params: Parameters = (), timeout: float | None = None, retry: Retry | None = None
    ) -> list[Row]:
        """See ``SQLPool.execute_query_async``."""
        return await self.pool.execute_query_async(self.config, sql, params, timeout, retry)

    def execute_many(self, sql: str, rows: Iterable[Parameters], timeout: float | None = None) -> int:
        """See ``SQLPool.execute_many``."""
        return self.pool.execute_many(self.config, sql, rows, timeout)

    async def execute_many_async(self, sql: str, rows: Iterable[Parameters], timeout: float | None = None) -> int:
        """See ``SQLPool.execute_many_async``."""
        return await self.pool.execute_many_async(self.config, sql, rows, timeout)

    def copy_rows(
        self, table: str, columns: Sequence[str], rows: Iterable[Parameters], timeout: float | None = None
    ) -> int:
        """See ``SQLPool.copy_rows``."""
        return self.pool.copy_rows(self.config, table, columns, rows, timeout)

    async def copy_rows_async(
        self, table: str, columns: Sequence[str], rows: Iterable[Parameters], timeout: float | None = None
    ) -> int:
        """See ``SQLPool.copy_rows_async``."""
        return await self.pool.copy_rows_async(self.config, table, columns, rows, timeout)

    def stream(
        self, sql: str, params: Parameters = (), batch: int = 1000, timeout: float | None = None
    ) -> Iterator[Row]:
        """See ``SQLPool.stream``."""
        return self.pool.stream(self.config, sql, params, batch, timeout)

    def stream_async(
        self, sql: str, params: Parameters = (), batch: int = 1000, timeout: float | None = None
    ) -> AsyncIterator[Row]:
        """See ``SQLPool.stream_async``."""
        return self.pool.stream_async(self.config, sql, params, batch, timeout)

    def connection(self, timeout: float | None = None) -> Lease[Connection, AsyncConnection]:
        """See ``SQLPool.connection``."""
        return self.pool.connection(self.config, timeout)

    def transaction(self, readonly: bool = False, timeout: float | None = None) -> Lease[Connection, AsyncConnection]:
        """See ``SQLPool.transaction``."""
        return self.pool.transaction(self.config, readonly, timeout)

    def session(self, timeout: float | None = None) -> Lease[Session, AsyncSession]:
        """See ``SQLPool.session``."""
        return self.pool.session(self.config, timeout)

    def engine(self) -> Engine:
        """See ``SQLPool.engine``."""
        return self.pool.engine(self.config)

    def async_engine(self) -> AsyncEngine:
        """See ``SQLPool.async_engine``."""
        return self.pool.async_engine(self.config)

    def warm_up(self) -> None:
        """See ``SQLPool.warm_up``."""
        self.pool.warm_up(self.config)

    def pause(self) -> None:
        """See ``SQLPool.pause``."""
        self.pool.pause(self.config)

    def resume(self) -> None:
        """See ``SQLPool.resume``."""
        self.pool.resume(self.config)
