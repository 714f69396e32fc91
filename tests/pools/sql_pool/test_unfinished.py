"""Transactions that are left open, also behind SQLAlchemy's back, and which of them their borrower is told about."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.pools.errors import DatabaseUnavailable
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, unfinished
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


INSERT = text("INSERT INTO t VALUES ('written')")


def commit_each(connection: Connection) -> None:
    connection.execution_options(isolation_level="AUTOCOMMIT")
    connection.execute(INSERT)


def roll_back_to_a_savepoint(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))
    savepoint = connection.begin_nested()
    connection.execute(INSERT)
    savepoint.rollback()


def roll_back_over_a_savepoint_that_was_released(connection: Connection) -> None:
    outer = connection.begin_nested()
    with connection.begin_nested():
        connection.execute(INSERT)
    outer.rollback()


def commit_by_text(connection: Connection) -> None:
    connection.execute(INSERT)
    connection.execute(text("COMMIT"))


def write_before_a_savepoint(connection: Connection) -> None:
    connection.execute(INSERT)
    roll_back_to_a_savepoint(connection)


def write_after_a_savepoint(connection: Connection) -> None:
    roll_back_to_a_savepoint(connection)
    connection.execute(INSERT)


def write_in_a_savepoint_that_is_released(connection: Connection) -> None:
    with connection.begin_nested():
        connection.execute(INSERT)
    roll_back_to_a_savepoint(connection)


def begin_in_autocommit(connection: Connection) -> None:
    connection.execution_options(isolation_level="AUTOCOMMIT")
    connection.execute(text("BEGIN"))
    connection.execute(INSERT)


WRITES: list[tuple[Any, int]] = [
    (commit_each, 0),
    (roll_back_to_a_savepoint, 0),
    (roll_back_over_a_savepoint_that_was_released, 0),
    (commit_by_text, 0),
    (write_before_a_savepoint, 1),
    (write_after_a_savepoint, 1),
    (write_in_a_savepoint_that_is_released, 1),
    (begin_in_autocommit, 1),
]


@pytest.mark.parametrize(("write", "reports"), WRITES)
async def test_only_what_is_rolled_back_is_reported(
    pool: SQLPool,
    database: DatabaseConfig,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    write: Any,
    reports: int,
) -> None:
    """Neither what was stored nor what its borrower has rolled back by itself is called unfinished."""
    monkeypatch.setattr(unfinished, "_reported", set())  # a place is told once, and here it is always the same
    pool.execute_query(database, "CREATE TABLE t (v text)")
    with pool.connection(database) as connection:
        write(connection)
    async with pool.connection(database) as asynchronous:
        await asynchronous.run_sync(write)

    assert len([record for record in caplog.records if "left unfinished" in record.message]) == 2 * reports
    stored = [] if reports or "roll" in write.__name__ else [("written",)] * 2
    assert pool.execute_query(database, "SELECT v FROM t") == stored
    await pool.stop_async()


def execute_and_close(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    with pool.connection(config) as connection:
        connection.execute(text(sql))
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.close()


@pytest.mark.parametrize("sql", ["SELECT 1", "CREATE TABLE t (v text)"])
def test_a_connection_that_its_borrower_closes_does_not_cost_its_place(
    single: SQLPool, database: DatabaseConfig, sql: str
) -> None:
    """Its lease ends with an error that says so, and the next one gets another connection."""
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match="closed"):
            execute_and_close(single, database, sql)
    assert single.get_stats()["metrics"]["active_connections"] == 0
    assert single.execute_query(database, "SELECT 1") == [(1,)]
