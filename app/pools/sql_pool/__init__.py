"""The SQL pool: PostgreSQL and SQLite connections, leased for one call."""

from app.pools.core.settings import SQLPoolSettings
from app.pools.sql_pool.config import DatabaseConfig, get_postgresql_config, get_sqlite_config
from app.pools.sql_pool.database import Database
from app.pools.sql_pool.leases import Lease
from app.pools.sql_pool.pool import SQLPool, get_sql_pool
from app.pools.sql_pool.rows import Row

__all__ = [
    "Database",
    "DatabaseConfig",
    "Lease",
    "Row",
    "SQLPool",
    "SQLPoolSettings",
    "get_postgresql_config",
    "get_sql_pool",
    "get_sqlite_config",
]
