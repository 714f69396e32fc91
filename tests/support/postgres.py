"""A real PostgreSQL for the tests, one for each worker process, started at the first use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.pools.sql_pool.embedded import EmbeddedPostgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """Return a server that nobody stops; a test that does so starts its own."""
    with EmbeddedPostgres(settings={"max_connections": "100"}) as server:
        yield server
