"""What the SQL pool's tests share: a pool, and a database of each kind."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config
from app.pools.sql_pool.embedded import EmbeddedPostgres
from tests.support.postgres import postgres_server

__all__ = ["postgres_server"]


@pytest.fixture
def pool() -> Iterator[SQLPool]:
    with SQLPool(SQLPoolSettings(max_connections=4, checkout_timeout=20)) as pool:
        yield pool


@pytest.fixture(params=["file", "memory"])
def sqlite(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseConfig:
    return get_sqlite_config(":memory:" if request.param == "memory" else tmp_path / "test.db")


@pytest.fixture
def postgres(postgres_server: EmbeddedPostgres) -> DatabaseConfig:
    """Return a database with nothing in it, and nobody else connected."""
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return postgres_server.config()


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseConfig:
    """Return a database of each kind, for what holds for all."""
    if request.param == "postgresql":
        config: DatabaseConfig = request.getfixturevalue("postgres")
        return config
    return get_sqlite_config(":memory:" if request.param == "memory" else tmp_path / "test.db")
