"""What a statement leaves in its session does not reach the next borrower of its connection."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Connection, inspect, text

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings
from app.pools.sql_pool.residue import LASTING, NOTHING, SETTINGS, residue_of

# Asked is what the session itself has: of one that was closed it goes when its backend does, a moment later.
LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
LEFT = [
    ("SET statement_timeout = '7s'", "SHOW statement_timeout", "0"),
    ("SELECT set_config('search_path', 'pg_catalog', false)", "SHOW search_path", '"$user", public'),
    ("LISTEN left_behind", "SELECT count(*) FROM pg_listening_channels()", 0),
    ("CREATE TEMPORARY TABLE left_behind (a int)", "SELECT to_regclass('pg_temp.left_behind')::text", None),
    ("SELECT pg_advisory_lock(7)", f"{LOCKS} AND pid = pg_backend_pid()", 0),
    ("SET session_authorization TO 'pg_monitor'", "SELECT session_user = 'pg_monitor'", False),
    ("SET /* c */ \"role\" TO 'pg_monitor'", "SELECT current_user = 'pg_monitor'", False),
    ("UPDATE pg_settings SET setting = 'off' WHERE name = 'enable_seqscan'", "SHOW enable_seqscan", "on"),
    (
        "EXPLAIN ANALYZE CREATE TEMP TABLE left_behind AS SELECT 1",
        "SELECT to_regclass('pg_temp.left_behind')::text",
        None,
    ),
    ("PREPARE left_behind AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_behind'", 0),
]
LEFT_ON_SQLITE = [
    ("PRAGMA foreign_keys = OFF", "PRAGMA foreign_keys", 1),
    ("PRAGMA/**/[foreign_keys] = OFF", "PRAGMA foreign_keys", 1),
    ("ATTACH ':memory:' AS left_behind", "SELECT count(*) FROM pragma_database_list WHERE name = 'left_behind'", 0),
    ("CREATE TEMP TABLE left_behind (a)", "SELECT count(*) FROM sqlite_temp_schema", 0),
]


@pytest.fixture
def single() -> Iterator[SQLPool]:
    """A pool in which whoever comes next has the same connection, if it is still there."""
    with SQLPool(SQLPoolSettings(max_connections=1, min_connections=0, checkout_timeout=20)) as pool:
        yield pool


def by_connection(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    with pool.connection(config) as connection:
        connection.execute(text(sql))
        connection.commit()


def by_driver_connection(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    with pool.connection(config) as connection:
        cursor = driver_cursor(connection)
        cursor.execute(sql)
        connection.connection.commit()


def driver_cursor(connection: Connection) -> Any:
    raw = connection.connection.driver_connection
    assert raw is not None
    return raw.cursor()


def by_transaction(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    with pool.transaction(config) as connection:
        connection.execute(text(sql))


def by_session(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    with pool.session(config) as session:
        session.execute(text(sql))
        session.commit()


def by_engine(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    with pool.engine(config).connect() as connection:
        connection.execute(text(sql))
        connection.commit()


def by_driver_stream(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    with pool.connection(config) as connection:
        for _row in driver_cursor(connection).stream(sql):
            pass
        connection.connection.commit()


def by_driver_copy(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    with pool.connection(config) as connection:
        with driver_cursor(connection).copy(f"COPY ({sql}) TO STDOUT") as copied:
            list(copied)
        connection.connection.commit()


Way = Callable[[SQLPool, DatabaseConfig, str], Any]
WAYS = [SQLPool.execute_query, by_connection, by_driver_connection, by_transaction, by_session, by_engine]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("left", "asked", "expected"), LEFT, ids=[left.split("(")[0] for left, _, _ in LEFT])
def test_a_thread_gets_nobodys_session_state(
    single: SQLPool, postgres: DatabaseConfig, way: Way, left: str, asked: str, expected: object
) -> None:
    """What a statement leaves in its session is gone when the next thread asks, whichever way it was executed."""
    way(single, postgres, left)
    assert single.execute_query(postgres, asked)[0][0] == expected


@pytest.mark.parametrize("way", [by_driver_stream, by_driver_copy])
def test_a_driver_cursor_that_hands_its_rows_on_leaves_nothing_either(
    single: SQLPool, postgres: DatabaseConfig, way: Way
) -> None:
    """What a statement leaves that psycopg streams or copies is gone when the next thread asks."""
    way(single, postgres, "SELECT pg_advisory_lock(7), set_config('search_path', 'pg_catalog', false)")
    assert single.execute_query(postgres, "SHOW search_path")[0][0] == '"$user", public'
    assert single.execute_query(postgres, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")[0][0] == 0


async def by_connection_async(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    async with pool.connection(config) as connection:
        await connection.execute(text(sql))
        await connection.commit()


async def by_driver_connection_async(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    async with pool.connection(config) as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.execute(sql)


async def by_driver_fetch_async(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    async with pool.connection(config) as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.fetch(sql)


async def by_session_async(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    async with pool.session(config) as session:
        await session.execute(text(sql))
        await session.commit()


async def by_engine_async(pool: SQLPool, config: DatabaseConfig, sql: str) -> None:
    async with pool.async_engine(config).begin() as connection:
        await connection.execute(text(sql))


AsyncWay = Callable[[SQLPool, DatabaseConfig, str], Awaitable[Any]]
ASYNC_WAYS = [
    SQLPool.execute_query_async,
    by_connection_async,
    by_driver_connection_async,
    by_driver_fetch_async,
    by_session_async,
    by_engine_async,
]


@pytest.mark.parametrize("way", ASYNC_WAYS)
@pytest.mark.parametrize(("left", "asked", "expected"), LEFT, ids=[left.split("(")[0] for left, _, _ in LEFT])
def test_a_task_gets_nobodys_session_state(
    single: SQLPool, postgres: DatabaseConfig, way: AsyncWay, left: str, asked: str, expected: object
) -> None:
    """What a statement leaves in its session is gone when the next task asks, whichever way it was executed."""

    async def main() -> None:
        await way(single, postgres, left)
        assert (await single.execute_query_async(postgres, asked))[0][0] == expected

    asyncio.run(main())


@pytest.mark.parametrize(
    ("way", "left", "asked", "expected"),
    [
        (way, *left)
        for way, left in product(WAYS, LEFT_ON_SQLITE)
        if not ("ATTACH" in left[0] and way in (by_transaction, by_session))  # SQLite attaches none in a transaction
    ],
)
def test_nobody_gets_anothers_pragma_file_or_temporary_table(
    single: SQLPool, sqlite: DatabaseConfig, way: Way, left: str, asked: str, expected: object
) -> None:
    """What a statement leaves on a SQLite connection is gone when the next one asks; the database stays."""
    single.execute_query(sqlite, "CREATE TABLE kept (a)")
    way(single, sqlite, left)
    assert single.execute_query(sqlite, asked)[0][0] == expected
    assert single.execute_query(sqlite, "SELECT count(*) FROM kept")[0][0] == 0


@pytest.mark.parametrize("way", [SQLPool.execute_query_async, by_connection_async])
async def test_no_task_gets_anothers_temporary_table(single: SQLPool, sqlite: DatabaseConfig, way: AsyncWay) -> None:
    """What a task leaves on a SQLite connection is gone when the next task asks in the same way."""
    await way(single, sqlite, "CREATE TEMP TABLE left_behind (a)")
    await way(single, sqlite, "CREATE TEMP TABLE left_behind (a)")


def test_a_setting_does_not_cost_its_connection(single: SQLPool, postgres: DatabaseConfig) -> None:
    """A connection whose settings were changed is reset and used on, and keeps its own timeout."""
    limited = replace(postgres, statement_timeout=30.0)
    for _ in range(8):
        process = single.execute_query(limited, "SELECT pg_backend_pid()")
    by_connection(single, limited, "SET statement_timeout = 0")
    by_connection(single, limited, "SELECT pg_advisory_lock(1)")
    assert single.execute_query(limited, "SELECT pg_backend_pid()") == process
    assert single.execute_query(limited, "SHOW statement_timeout")[0][0] == "30s"


def test_what_sqlalchemy_itself_says_does_not_cost_a_connection(single: SQLPool, sqlite: DatabaseConfig) -> None:
    """Looking at tables and changing the isolation level for a lease leaves nothing."""
    single.execute_query(sqlite, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT UNIQUE)")
    with single.connection(sqlite) as connection:
        assert [column["name"] for column in inspect(connection).get_columns("notes")] == ["id", "body"]
        assert len(inspect(connection).get_unique_constraints("notes")) == 1
    with single.engine(sqlite).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("INSERT INTO notes (body) VALUES ('x')"))
    assert single.execute_query(sqlite, "SELECT body FROM notes") == [("x",)]
    assert single.get_stats()["metrics"]["pool_misses"] == 1


async def test_a_setting_does_not_cost_a_tasks_connection(single: SQLPool, postgres: DatabaseConfig) -> None:
    """The same holds for tasks."""
    limited = replace(postgres, statement_timeout=30.0)
    process = await single.execute_query_async(limited, "SELECT pg_backend_pid()")
    await by_connection_async(single, limited, "SET statement_timeout = 0")
    await single.execute_query_async(limited, "SELECT set_config('app.user', 'ada', false)")
    assert await single.execute_query_async(limited, "SELECT pg_backend_pid()") == process
    assert (await single.execute_query_async(limited, "SHOW statement_timeout"))[0][0] == "30s"


@pytest.mark.parametrize("way", ASYNC_WAYS)
@pytest.mark.parametrize(("left", "asked", "expected"), LEFT, ids=[left.split("(")[0] for left, _, _ in LEFT])
async def test_what_is_left_again_is_removed_again(
    single: SQLPool, postgres: DatabaseConfig, way: AsyncWay, left: str, asked: str, expected: object
) -> None:
    """The same text leaves nothing to the next task in its second and third lease either, prepared as it is by then."""
    for _ in range(3):
        await way(single, postgres, left)
        assert (await single.execute_query_async(postgres, asked))[0][0] == expected


def test_behind_pgbouncer_a_changed_connection_is_closed(single: SQLPool, postgres: DatabaseConfig) -> None:
    """With prepared=False nothing is reset, for the statement might reach another server connection: it is closed."""
    unprepared = replace(postgres, prepared=False)
    process = single.execute_query(unprepared, "SELECT pg_backend_pid()")
    single.execute_query(unprepared, "SET statement_timeout = '7s'")
    assert single.execute_query(unprepared, "SHOW statement_timeout")[0][0] == "0"
    assert single.execute_query(unprepared, "SELECT pg_backend_pid()") != process


def test_a_failed_statement_leaves_nothing_either(single: SQLPool, postgres: DatabaseConfig) -> None:
    """An advisory lock that was taken by a statement that failed is free again."""
    with pytest.raises(Exception, match="division by zero"):
        single.execute_query(postgres, "SELECT pg_advisory_lock(7), 1 / (pg_backend_pid() - pg_backend_pid())")
    assert single.execute_query(postgres, LOCKS)[0][0] == 0


async def test_a_cancelled_task_leaves_nothing_either(single: SQLPool, postgres: DatabaseConfig) -> None:
    """An advisory lock that a cancelled task has taken is free again."""
    taking = asyncio.create_task(
        single.execute_query_async(postgres, "SELECT pg_advisory_lock(7) UNION ALL SELECT pg_sleep(20)")
    )
    with SQLPool() as other:
        while not (await other.execute_query_async(postgres, LOCKS))[0][0]:
            assert not taking.done()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert (await single.execute_query_async(postgres, LOCKS))[0][0] == 0


def test_a_stream_that_is_left_leaves_no_lock(single: SQLPool, postgres: DatabaseConfig) -> None:
    """The session's locks of a stream are free again, whether it ends or is closed before."""
    for taken in (1, 3):
        rows = single.stream(postgres, "SELECT pg_advisory_lock(g) FROM generate_series(1, 3) g", batch=1)
        for _ in range(taken):
            next(rows)
        rows.close()  # type: ignore[attr-defined]
        assert single.execute_query(postgres, LOCKS)[0][0] == 0


def test_an_unfinished_transaction_is_reported_and_rolled_back(
    single: SQLPool, postgres: DatabaseConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """A text that begins a transaction does not leave it to the next caller, and is told about."""
    with caplog.at_level(logging.WARNING):
        single.execute_query(postgres, "BEGIN ISOLATION LEVEL SERIALIZABLE")
    assert "left unfinished" in caplog.text
    assert single.execute_query(postgres, "SHOW transaction_isolation")[0][0] == "read committed"


@pytest.mark.parametrize(
    ("sql", "residue"),
    [
        ("SELECT temp, location FROM sensors", NOTHING),
        ("INSERT INTO temp VALUES (1)", NOTHING),
        ("UPDATE settings SET role = 'x'; DELETE FROM settings", NOTHING),
        ("SET LOCAL work_mem = '1MB'", NOTHING),
        ("set transaction read only", NOTHING),
        ("SET CONSTRAINTS ALL DEFERRED", NOTHING),
        ("SELECT set_config('app.user', ?, true)", NOTHING),
        ("SELECT pg_advisory_xact_lock(1)", NOTHING),
        ("PREPARE TRANSACTION 'both'", NOTHING),
        ("DECLARE found CURSOR FOR SELECT 1", NOTHING),
        ("CREATE TEMP TABLE short (a int) ON COMMIT DROP", NOTHING),
        ("PRAGMA main.table_info(books)", NOTHING),
        ("PRAGMA foreign_keys", NOTHING),
        ("PRAGMA user_version = 3", NOTHING),
        ("EXPLAIN CREATE TEMP TABLE planned AS SELECT 1", NOTHING),
        ("EXPLAIN ANALYZE SELECT a FROM b", NOTHING),
        ("SELECT * FROM pg_settings FOR UPDATE", NOTHING),
        ("/* why */ SET work_mem = '1MB'", SETTINGS),
        ("-- why\nset session work_mem = '1MB'", SETTINGS),
        ("SELECT 1; SET work_mem = '1MB'", SETTINGS),
        ("SET TIME ZONE 'UTC'", SETTINGS),
        ("SELECT pg_try_advisory_lock_shared(1)", SETTINGS),
        ("SELECT set_config('app.user', ?, false)", SETTINGS),
        ("SELECT set_config(?, ?, false)", LASTING),
        ("SET SESSION search_path = audit", LASTING),
        ("SET ROLE reader", LASTING),
        ("SET SESSION AUTHORIZATION reader", LASTING),
        ("SELECT a INTO TEMP left_behind FROM b", LASTING),
        ("CREATE OR REPLACE TEMPORARY VIEW left_behind AS SELECT 1", LASTING),
        ("CREATE TABLE pg_temp.left_behind (a int)", LASTING),
        ("DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1", LASTING),
        ("DO $$ BEGIN PERFORM 1; END $$", LASTING),
        ("DISCARD ALL", LASTING),
        ("EXPLAIN ANALYSE VERBOSE CREATE TEMP TABLE left_behind AS SELECT 1", LASTING),
        ("EXPLAIN (COSTS OFF, ANALYZE) (CREATE TEMP TABLE left_behind AS SELECT 1)", LASTING),
        ('UPDATE ONLY "pg_catalog"."pg_settings" SET setting = ?', LASTING),
        ("SELECT setseed(0.5)", LASTING),
        ("PRAGMA cache_size(10)", LASTING),
        ("PRAGMA main.synchronous = OFF", LASTING),
        ("INSERT /* */ INTO temp VALUES (1)", NOTHING),
        ("SELECT '; /* ', x -- ; SET ROLE reader\n FROM y", NOTHING),
        ('PRAGMA "table_info"(books)', NOTHING),
        ("SET LOCAL ROLE reader", NOTHING),
        ("SET /* c */ LOCAL ROLE reader", NOTHING),
        ("SET /* c */ SESSION \"app.user\" TO 'ada'", SETTINGS),
        ("SET app.user = 'ada'", SETTINGS),
        ("SET NAMES 'utf8'", SETTINGS),
        ("SET session_authorization TO 'reader'", LASTING),
        ("SET SESSION session_authorization = reader", LASTING),
        ("SET SESSION SESSION AUTHORIZATION reader", LASTING),
        ("SET \"role\" TO 'reader'", LASTING),
        ("SET U&\"r\\006fle\" TO 'reader'", LASTING),
        ("SET /* c */ ROLE reader", LASTING),
        ("SELECT '/*'; SET ROLE reader; SELECT '*/'", LASTING),
        ("/* /* */ */ SET ROLE reader", LASTING),
        ("SELECT a INTO pg_temp.left_behind FROM b", LASTING),
        ('CREATE TABLE "temp".left_behind (a)', LASTING),
        ("CREATE TABLE 'temp'.left_behind (a)", LASTING),
        ('PRAGMA "foreign_keys" = OFF', LASTING),
        ("PRAGMA [foreign_keys] = OFF", LASTING),
        ("PRAGMA `foreign_keys` = OFF", LASTING),
        ("PRAGMA 'foreign_keys' = OFF", LASTING),
        ("PRAGMA/* c */foreign_keys = OFF", LASTING),
    ],
)
def test_a_text_says_what_it_leaves(sql: str, residue: int) -> None:
    """residue_of() tells settings that the server resets from what only the connection's end removes."""
    assert residue_of(sql) == residue


async def test_a_stop_does_not_wait_for_what_is_being_cleaned(postgres: DatabaseConfig) -> None:
    """A pool that is stopped in the event loop, whose connections the same loop cleans, has no lease to wait for."""
    for _ in range(5):
        with SQLPool(SQLPoolSettings(max_connections=2)) as pool:
            await by_connection_async(pool, postgres, "SET statement_timeout = '7s'")
            began = time.monotonic()
        assert time.monotonic() - began < 5
