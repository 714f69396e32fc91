"""What a lease of SQLite holds of the database, and that it ends with the lease or with what failed in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config

COUNT = text("SELECT count(*) FROM t")
READ = text("SELECT v FROM t")


@pytest.fixture
def single() -> Iterator[SQLPool]:
    """Return a pool with one connection, so that the next borrower gets the last one's."""
    with SQLPool(SQLPoolSettings(max_connections=1, min_connections=1, checkout_timeout=20)) as pool:
        yield pool


@pytest.fixture
def numbers(single: SQLPool, tmp_path: Path) -> DatabaseConfig:
    config = get_sqlite_config(tmp_path / "numbers.db", busy_timeout=0.3)
    single.execute_query(config, "CREATE TABLE t (v INTEGER UNIQUE)")
    single.execute_many(config, "INSERT INTO t VALUES (?)", ((number,) for number in range(1000)))
    return config


def others_write(config: DatabaseConfig, value: int) -> None:
    with SQLPool() as others:
        others.execute_query(config, "INSERT INTO t VALUES (?)", (value,))


def assert_up_to_date(pool: SQLPool, config: DatabaseConfig, rows: int) -> None:
    """Fail unless the pool's one connection sees what others wrote, and can write."""
    with pool.connection(config) as connection:
        assert connection.execute(COUNT).scalar() == rows
        connection.execute(text("INSERT INTO t VALUES (-1)"))
        connection.execute(text("DELETE FROM t WHERE v = -1"))
        connection.commit()
    assert pool.execute_query(config, "SELECT count(*) FROM t") == [(rows,)]


@pytest.mark.parametrize("way", ["connection", "transaction", "session", "engine", "driver"])
def test_a_result_that_was_not_read_to_its_end_ends_with_its_lease(
    single: SQLPool, numbers: DatabaseConfig, way: str
) -> None:
    """Who keeps it reads no further, and the next borrower sees the database as it is, and may write."""
    for turn in range(3):
        if way == "engine":
            with single.engine(numbers).connect() as connection:
                result: Any = connection.execute(READ)
        elif way == "driver":
            with single.connection(numbers) as connection:
                result = connection.connection.cursor()
                result.execute("SELECT v FROM t")
        else:
            with getattr(single, way)(numbers) as connection:
                result = connection.execute(READ)
        others_write(numbers, 1000 + turn)

        assert_up_to_date(single, numbers, 1001 + turn)
        with pytest.raises((InvalidRequestError, DBAPIError, sqlite3.ProgrammingError)):
            result.fetchone()
    assert single.get_stats()["pools"][numbers.label]["discarded"] == 0


@pytest.mark.parametrize("way", ["connection", "transaction", "session", "engine"])
async def test_a_tasks_stream_that_was_not_read_to_its_end_ends_with_its_lease(
    single: SQLPool, numbers: DatabaseConfig, way: str
) -> None:
    """The same for tasks, whose results are read to their end at once, unless they are streamed."""
    for turn in range(3):
        lease: Any = single.async_engine(numbers).connect() if way == "engine" else getattr(single, way)(numbers)
        async with lease as connection:
            result = await connection.stream(READ)
            assert (await result.fetchone()) is not None
        others_write(numbers, 1000 + turn)

        async with single.connection(numbers) as connection:
            assert (await connection.execute(COUNT)).scalar() == 1001 + turn
        async with single.transaction(numbers) as connection:
            await connection.execute(text("UPDATE t SET v = v WHERE v = 1"))
        del result
    assert single.get_stats()["pools"][f"{numbers.label} (async)"]["discarded"] == 0
    await single.stop_async()


def test_a_connection_that_is_given_up_keeps_no_state_of_the_database(single: SQLPool, numbers: DatabaseConfig) -> None:
    """Whoever still has its result keeps no log from being written back to the file."""
    with single.connection(numbers) as connection:
        result = connection.execute(READ)
        connection.invalidate()
    others_write(numbers, 1000)
    with SQLPool() as others:
        (busy, logged, stored) = others.execute_query(numbers, "PRAGMA wal_checkpoint(TRUNCATE)")[0]
    assert (busy, logged) == (0, stored)
    del result


def test_a_lease_of_many_statements_keeps_no_cursor_in_mind(single: SQLPool, numbers: DatabaseConfig) -> None:
    """What is gone is forgotten during the lease already."""
    with single.connection(numbers) as connection:
        for _ in range(2000):
            connection.execute(COUNT).scalar()
        raw: Any = connection.connection.driver_connection
        assert len(raw._handles) < 200


FAILING = ["INSERT INTO t VALUES (2000)", "INSERT INTO missing VALUES (:value)", "INSURT INTO t VALUES (1)"]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("failing", FAILING)
def test_a_reader_whose_write_fails_keeps_no_writer_out(
    single: SQLPool, numbers: DatabaseConfig, failing: str, rows: int
) -> None:
    """A transaction that could not become the writer is a reader as before, and others write at once."""
    with single.connection(numbers) as connection:
        before = connection.execute(COUNT).scalar()
        others_write(numbers, 1000)
        with pytest.raises(DBAPIError):
            connection.execute(text(failing), [{"value": 1}] * rows)
        others_write(numbers, 1001)

        assert connection.execute(COUNT).scalar() == before
        connection.rollback()
        connection.execute(text("INSERT INTO t VALUES (1002)"))
        connection.commit()
    assert_up_to_date(single, numbers, 1003)


def test_a_writer_whose_write_fails_stays_the_writer(single: SQLPool, numbers: DatabaseConfig) -> None:
    """A transaction that has become the writer, if only by what failed, has its turn until its end."""
    with single.connection(numbers) as connection:
        connection.execute(READ).all()
        with pytest.raises(DBAPIError, match="UNIQUE"):
            connection.execute(text("INSERT INTO t VALUES (1)"))
        with pytest.raises(sqlite3.OperationalError, match="writer lock"):
            others_write(numbers, 1000)
        with pytest.raises(DBAPIError, match="no such table"):
            connection.execute(text("INSERT INTO missing VALUES (1)"))
        with pytest.raises(sqlite3.OperationalError, match="writer lock"):
            others_write(numbers, 1000)
        connection.execute(text("INSERT INTO t VALUES (1001)"))
        connection.commit()
    others_write(numbers, 1000)
    assert_up_to_date(single, numbers, 1002)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_only_in_memory_an_open_stream_keeps_writers_out(pool: SQLPool, tmp_path: Path, kind: str) -> None:
    """A database without a log has one state for all, and whoever waits too long is told that it is locked."""
    config = get_sqlite_config(":memory:" if kind == "memory" else tmp_path / "x.db", busy_timeout=0.2)
    pool.execute_query(config, "CREATE TABLE t (v)")
    pool.execute_many(config, "INSERT INTO t VALUES (?)", ((number,) for number in range(100)))
    stream = pool.stream(config, "SELECT v FROM t", batch=10)
    assert next(stream) == (0,)
    if kind == "memory":
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            pool.execute_query(config, "UPDATE t SET v = 0")
    else:
        pool.execute_query(config, "UPDATE t SET v = 0")
    assert len(list(stream)) == 99
    pool.execute_query(config, "UPDATE t SET v = 0")
