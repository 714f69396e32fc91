"""A real PostgreSQL for the tests, one for each worker process, started at the first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from app.pools.errors import DatabaseUnavailable
from app.pools.sql_pool.embedded import EmbeddedPostgres
from tests.support.waiting import eventually


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """Return a server that nobody stops; a test that does so starts its own."""
    with EmbeddedPostgres(settings={"max_connections": "100"}) as server:
        yield server


def error_of_ended(server: EmbeddedPostgres, beginning: str, call: Callable[[], object]) -> DatabaseUnavailable:
    """Call ``call`` in a thread, end its session as it executes a text with this ``beginning``, return its error."""
    found: list[DatabaseUnavailable] = []

    def work() -> None:
        try:
            call()
        except DatabaseUnavailable as error:
            found.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    with psycopg.connect(server.url(), autocommit=True) as other:
        at_it = "FROM pg_stat_activity WHERE starts_with(query, %s) AND state = 'active' AND pid <> pg_backend_pid()"
        eventually(lambda: other.execute(f"SELECT pid {at_it}", (beginning,)).fetchall())
        other.execute(f"SELECT pg_terminate_backend(pid) {at_it}", (beginning,))
    worker.join(20)
    (error,) = found
    return error
