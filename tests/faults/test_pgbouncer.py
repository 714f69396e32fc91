"""Behind a pooler that lends server connections for one transaction, such as PgBouncer."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings
from app.pools.sql_pool.embedded import EmbeddedPostgres
from tests.support.transaction_pooling import TransactionPooler

CLIENTS = 6
QUERIES = 40


@pytest.fixture
def pooled(frail_server: EmbeddedPostgres, frail: DatabaseConfig) -> Iterator[DatabaseConfig]:
    with TransactionPooler(frail_server.port) as pooler:
        yield replace(frail, port=pooler.port, sslmode="disable")


@pytest.fixture
def pool() -> Iterator[SQLPool]:
    with SQLPool(SQLPoolSettings(max_connections=CLIENTS, checkout_timeout=20)) as pool:
        yield pool


def query(number: int) -> str:
    """Return one of a few texts, each often enough to be worth preparing."""
    return f"SELECT ?::int + {number % 3}"


def test_threads_get_right_answers_when_nothing_is_prepared(pool: SQLPool, pooled: DatabaseConfig) -> None:
    """With prepared=False many clients share sessions without an error."""
    config = replace(pooled, prepared=False)

    def client(number: int) -> None:
        for n in range(QUERIES):
            assert pool.execute_query(config, query(n), (number,)) == [(number + n % 3,)]
            with pool.transaction(config) as connection:
                assert connection.execute(text(f"SELECT :n + {n % 3}"), {"n": number}).scalar() == number + n % 3

    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(client, range(CLIENTS)))


async def test_tasks_get_right_answers_when_nothing_is_prepared(pool: SQLPool, pooled: DatabaseConfig) -> None:
    """The same with asyncpg, for statements and for leased connections."""
    config = replace(pooled, prepared=False)

    async def client(number: int) -> None:
        for n in range(QUERIES):
            assert await pool.execute_query_async(config, query(n), (number,)) == [(number + n % 3,)]
            async with pool.transaction(config) as connection:
                found = await connection.execute(text(f"SELECT CAST(:n AS int) + {n % 3}"), {"n": number})
                assert found.scalar() == number + n % 3

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    await pool.stop_async()


def test_prepared_statements_do_fail_there(pool: SQLPool, pooled: DatabaseConfig) -> None:
    """The default fails behind such a pooler, which shows that the pooler of these tests is one."""

    def prepare_on_one_session_and_execute_on_the_other() -> None:
        with pool.connection(pooled) as one, pool.connection(pooled) as other:
            for _ in range(QUERIES):
                for connection in (one, one, other):  # three turns on two sessions: each client meets both
                    connection.exec_driver_sql("SELECT 1")
                    connection.commit()

    with pytest.raises(ProgrammingError, match="prepared statement"):
        prepare_on_one_session_and_execute_on_the_other()
