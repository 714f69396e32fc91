"""What the SQL pool's tests share: a pool, and a SQLite database of each kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config


@pytest.fixture
def pool() -> Iterator[SQLPool]:
    with SQLPool(SQLPoolSettings(max_connections=4, checkout_timeout=20)) as pool:
        yield pool


@pytest.fixture(params=["file", "memory"])
def sqlite(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseConfig:
    return get_sqlite_config(":memory:" if request.param == "memory" else tmp_path / "test.db")
