"""A database's side for the tasks of one event loop: an AsyncEngine, and the driver-level calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence

from sqlalchemy.ext.asyncio import AsyncEngine

from app.pools.core.bucket import Limits
from app.pools.core.budget import Budget
from app.pools.sql_pool.arguments import Retry
from app.pools.sql_pool.cleaning import AsyncCleaner
from app.pools.sql_pool.connections import ConnectionBucket
from app.pools.sql_pool.drivers import EngineDriver
from app.pools.sql_pool.lease_pool import LeasePool
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.statements import Parameters
from app.pools.sql_pool.unfinished import watch_writes


class AsyncSide(ABC):
    """Connections of one database for the tasks of one event loop.

    Args:
        driver: the driver, which knows the database.
        limits: the cap and the times.
        label: the database's name, without secrets.
        budget: the cap that the database's sides have together.
    """

    def __init__(self, driver: EngineDriver, limits: Limits, label: str, budget: Budget | None) -> None:
        self.driver = driver
        self.label = label
        self.engine = driver.engine(limits, budget)
        self.lending_engine = AsyncEngine(watch_writes(self.engine.sync_engine))
        pool = self.engine.sync_engine.pool
        assert isinstance(pool, LeasePool)
        assert isinstance(pool.cleaner, AsyncCleaner)
        self.bucket: ConnectionBucket = pool.bucket
        self._clean = pool.cleaner.clean

    @abstractmethod
    async def execute(self, sql: str, params: Parameters, timeout: float | None, retry: Retry | None) -> list[Row]:
        """Execute one statement in autocommit mode and return its rows."""

    @abstractmethod
    async def execute_many(self, sql: str, rows: Iterable[Parameters], timeout: float | None) -> int:
        """Execute one statement for each set of parameters in one transaction; return how many there were."""

    @abstractmethod
    async def copy_rows(
        self, table: str, columns: Sequence[str], rows: Iterable[Parameters], timeout: float | None
    ) -> int:
        """Store many rows in one transaction; return how many there were."""

    @abstractmethod
    def stream(self, sql: str, params: Parameters, batch: int, timeout: float | None) -> AsyncIterator[Row]:
        """Yield a query's rows as the database finds them, holding a connection until the last or until closed."""
