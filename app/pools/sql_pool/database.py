"""A handle: the SQL pool and one database, for those who should not care about configs."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

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

    def execute_query(self, sql: str, params: Parameters = (), timeout: float | None = None) -> list[Row]:
        """See ``SQLPool.execute_query``."""
        return self.pool.execute_query(self.config, sql, params, timeout)

    async def execute_query_async(self, sql: str, params: Parameters = (), timeout: float | None = None) -> list[Row]:
        """See ``SQLPool.execute_query_async``."""
        return await self.pool.execute_query_async(self.config, sql, params, timeout)

    def execute_many(self, sql: str, rows: Iterable[Parameters], timeout: float | None = None) -> int:
        """See ``SQLPool.execute_many``."""
        return self.pool.execute_many(self.config, sql, rows, timeout)

    async def execute_many_async(self, sql: str, rows: Iterable[Parameters], timeout: float | None = None) -> int:
        """See ``SQLPool.execute_many_async``."""
        return await self.pool.execute_many_async(self.config, sql, rows, timeout)

    def connection(self, timeout: float | None = None) -> Lease[Connection, AsyncConnection]:
        """See ``SQLPool.connection``."""
        return self.pool.connection(self.config, timeout)

    def transaction(self, readonly: bool = False, timeout: float | None = None) -> Lease[Connection, AsyncConnection]:
        """See ``SQLPool.transaction``."""
        return self.pool.transaction(self.config, readonly, timeout)

    def session(self, timeout: float | None = None) -> Lease[Session, AsyncSession]:
        """See ``SQLPool.session``."""
        return self.pool.session(self.config, timeout)
