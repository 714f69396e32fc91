"""Behind a pooler that lends server connections for one transaction, such as PgBouncer."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.pools.sql_pool import DatabaseConfig, Row, SQLPool, SQLPoolSettings
from app.pools.sql_pool.embedded import EmbeddedPostgres
from tests.support.transaction_pooling import TransactionPooler

CLIENTS = 6
QUERIES = 40
ROUNDS = 5


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


def test_threads_stream_and_store_there(pool: SQLPool, pooled: DatabaseConfig) -> None:
    """Streams, execute_many, copy_rows and sessions keep to one server connection each, and get what is theirs."""
    config = replace(pooled, prepared=False)
    pool.execute_query(config, "DROP TABLE IF EXISTS stored")
    pool.execute_query(config, "CREATE TABLE stored (client int)")

    def client(number: int) -> None:
        for _ in range(ROUNDS):
            rows = pool.stream(config, "SELECT g FROM generate_series(1, ?::int) g", (20 + number,), batch=7)
            assert [row.g for row in rows] == list(range(1, 21 + number))
            assert pool.execute_many(config, "INSERT INTO stored VALUES (?)", [(number,)] * 3) == 3
            assert pool.copy_rows(config, "stored", ["client"], [(number,)] * 3) == 3
            with pool.session(config) as session:
                assert session.execute(text("SELECT 1")).scalar() == 1

    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(client, range(CLIENTS)))
    assert stored(pool, config) == [(number, 6 * ROUNDS) for number in range(CLIENTS)]


async def test_tasks_stream_and_store_there(pool: SQLPool, pooled: DatabaseConfig) -> None:
    """The same with asyncpg."""
    config = replace(pooled, prepared=False)
    pool.execute_query(config, "DROP TABLE IF EXISTS stored")
    pool.execute_query(config, "CREATE TABLE stored (client int)")

    async def client(number: int) -> None:
        for _ in range(ROUNDS):
            rows = pool.stream_async(config, "SELECT g FROM generate_series(1, ?::int) g", (20 + number,), batch=7)
            assert [row.g async for row in rows] == list(range(1, 21 + number))
            assert await pool.execute_many_async(config, "INSERT INTO stored VALUES (?)", [(number,)] * 3) == 3
            assert await pool.copy_rows_async(config, "stored", ["client"], [(number,)] * 3) == 3
            async with pool.session(config) as session:
                assert (await session.execute(text("SELECT 1"))).scalar() == 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    assert stored(pool, config) == [(number, 6 * ROUNDS) for number in range(CLIENTS)]
    await pool.stop_async()


def stored(pool: SQLPool, config: DatabaseConfig) -> list[Row]:
    return pool.execute_query(config, "SELECT client, count(*) FROM stored GROUP BY client ORDER BY client")


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
