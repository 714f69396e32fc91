"""What the fault tests share: a PostgreSQL that may be killed, and databases in it."""

from collections.abc import Iterator

import pytest

from app.pools.sql_pool import DatabaseConfig
from app.pools.sql_pool.embedded import EmbeddedPostgres


@pytest.fixture(scope="module")
def frail_server() -> Iterator[EmbeddedPostgres]:
    """Return a server of the module's own, which its tests may stop and kill."""
    with EmbeddedPostgres(settings={"max_connections": "40"}) as server:
        yield server


@pytest.fixture
def frail(frail_server: EmbeddedPostgres) -> DatabaseConfig:
    """Return its database; the server runs again, whatever the test before did."""
    return frail_server.start().config()
