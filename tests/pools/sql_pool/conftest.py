"""What the SQL pool's tests share: a pool, and a database of each kind."""

import secrets
from collections.abc import Iterator
from pathlib import Path

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
    """Return a database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    with SQLPool() as pool:
        pool.execute_query(postgres_server.config(), f"CREATE DATABASE {name}")
    return postgres_server.config(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseConfig:
    """Return a database of either kind, for what holds for both."""
    if request.param == "sqlite":
        return get_sqlite_config(tmp_path / "test.db")
    config: DatabaseConfig = request.getfixturevalue("postgres")
    return config
