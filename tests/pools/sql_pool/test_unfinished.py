"""Transactions that are left open, also behind SQLAlchemy's back, and what is told about them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings
from tests.support.waiting import eventually_async


@pytest.fixture
def single() -> Iterator[SQLPool]:
    """Return a pool with one connection, so that the next borrower gets the last one's."""
    with SQLPool(SQLPoolSettings(max_connections=1, min_connections=1, checkout_timeout=20)) as pool:
        yield pool


async def driver_connection(connection: AsyncConnection) -> Any:
    return (await connection.get_raw_connection()).driver_connection


async def begin_by_text(connection: AsyncConnection) -> None:
    await connection.execution_options(isolation_level="AUTOCOMMIT")
    await connection.execute(text("BEGIN"))
    await connection.execute(text("INSERT INTO t VALUES ('lost')"))


async def begin_at_the_driver(connection: AsyncConnection) -> None:
    raw = await driver_connection(connection)
    await raw.execute("BEGIN")
    await raw.execute("INSERT INTO t VALUES ('lost')")


async def begin_an_object_of_the_drivers(connection: AsyncConnection) -> None:
    raw = await driver_connection(connection)
    await raw.transaction().start()
    await raw.execute("INSERT INTO t VALUES ('lost')")


async def end_behind_the_drivers_back(connection: AsyncConnection) -> None:
    await begin_an_object_of_the_drivers(connection)
    await (await driver_connection(connection)).execute("ROLLBACK")


async def fail_in_it(connection: AsyncConnection) -> None:
    await begin_by_text(connection)
    with pytest.raises(Exception, match="division by zero"):
        await connection.execute(text("SELECT 1/0"))


OPENINGS = [
    begin_by_text,
    begin_at_the_driver,
    begin_an_object_of_the_drivers,
    end_behind_the_drivers_back,
    fail_in_it,
]


@pytest.mark.parametrize("source", ["connection", "engine"])
@pytest.mark.parametrize("opening", OPENINGS)
async def test_a_transaction_that_sqlalchemy_did_not_begin_reaches_nobody(
    single: SQLPool, postgres: DatabaseConfig, opening: Any, source: str
) -> None:
    """However a task's lease has begun one and left it, the next borrowers get a connection that is in none."""
    await single.execute_query_async(postgres, "CREATE TABLE t (v text)")
    process = await single.execute_query_async(postgres, "SELECT pg_backend_pid()")

    def lend() -> Any:
        return single.connection(postgres) if source == "connection" else single.async_engine(postgres).connect()

    async with lend() as connection:
        await opening(connection)
    await single.execute_query_async(postgres, "INSERT INTO t VALUES ('next')")
    async with lend() as connection:
        await opening(connection)
    async with single.transaction(postgres) as connection:
        await connection.execute(text("INSERT INTO t VALUES ('last')"))

    with psycopg.connect(single_url(postgres)) as other:
        assert other.execute("SELECT v FROM t").fetchall() == [("next",), ("last",)]
    assert await single.execute_query_async(postgres, "SELECT pg_backend_pid()") == process
    await single.stop_async()


def single_url(config: DatabaseConfig) -> str:
    assert config.password is not None
    return psycopg.conninfo.make_conninfo(
        host=config.host,
        port=config.port,
        dbname=config.database,
        user=config.username,
        password=config.password.get_secret_value(),
    )


async def test_a_transaction_left_open_ends_on_the_server_at_once(single: SQLPool, postgres: DatabaseConfig) -> None:
    """It does not wait for the next borrower, with its locks."""
    states = "SELECT state FROM pg_stat_activity WHERE application_name = 'poolwire'"
    await single.execute_query_async(postgres, "CREATE TABLE t (v text)")
    async with single.connection(postgres) as connection:
        await begin_by_text(connection)

    def ended() -> bool:
        with psycopg.connect(single_url(postgres)) as other:
            return other.execute(states).fetchall() == [("idle",)]

    await eventually_async(ended)
    await single.stop_async()


async def test_asyncpg_knows_its_outermost_transaction(single: SQLPool, postgres: DatabaseConfig) -> None:
    """_top_xact is the object whose start() began one, and None without one; later ones are savepoints in it."""
    async with single.connection(postgres) as connection:
        raw = await driver_connection(connection)
        assert raw._top_xact is None
        transaction = raw.transaction()
        await transaction.start()
        assert raw._top_xact is transaction
        await transaction.rollback()
        assert raw._top_xact is None
    assert "con._top_xact = self" in inspect.getsource(asyncpg.transaction.Transaction.start)
    await single.stop_async()
