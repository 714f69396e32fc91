"""What the SQL pool promises for PostgreSQL and for SQLite alike."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.pools.errors import ConfigError, DatabaseUnavailable, LeaseLeaked, PoolClosed, PoolTimeout, QueryTimeout
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config
from tests.support.waiting import eventually, eventually_async


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


@pytest.fixture
def notes(pool: SQLPool, database: DatabaseConfig) -> DatabaseConfig:
    kind = "INTEGER" if database.backend == "sqlite" else "SERIAL"
    pool.execute_query(database, f"CREATE TABLE notes (id {kind} PRIMARY KEY, body TEXT NOT NULL)")
    return database


def bodies(pool: SQLPool, config: DatabaseConfig) -> list[str]:
    return [row.body for row in pool.execute_query(config, "SELECT body FROM notes ORDER BY id")]


def active(pool: SQLPool) -> int:
    return pool.get_stats()["metrics"]["active_connections"]


def discarded(pool: SQLPool) -> int:
    return sum(figures["discarded"] for figures in pool.get_stats()["pools"].values())


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("INSERT INTO notes (body) VALUES ('x') RETURNING id, body", [(1, "x")]),
        ("WITH pair(a, b) AS (VALUES (1, 2)) SELECT a, b FROM pair", [(1, 2)]),
        ("VALUES (1), (2)", [(1,), (2,)]),
        ("-- a comment\n/* and another */ SELECT 7", [(7,)]),
        ("INSERT INTO notes (body) VALUES ('x')", []),
        ("SELECT '100%' WHERE 'a' LIKE 'a%'", [("100%",)]),
    ],
)
async def test_rows_come_back_whenever_the_database_returned_any(
    pool: SQLPool, notes: DatabaseConfig, sql: str, expected: list[tuple[object, ...]]
) -> None:
    """Rows depend on the result, not on the text's first word, for threads and tasks."""
    assert pool.execute_query(notes, sql) == expected
    pool.execute_query(notes, "DELETE FROM notes")
    again = await pool.execute_query_async(notes, sql)

    assert [row[-1] for row in again] == [row[-1] for row in expected]
    await pool.stop_async()


async def test_question_marks_and_names_work_on_every_database(pool: SQLPool, notes: DatabaseConfig) -> None:
    """The same text runs on each, sync and async, and rows know their columns."""
    pool.execute_query(notes, "INSERT INTO notes (body) VALUES (?)", ("one",))
    pool.execute_query(notes, "INSERT INTO notes (body) VALUES (:body)", {"body": "two"})
    await pool.execute_query_async(notes, "INSERT INTO notes (body) VALUES (?)", ["three"])
    found = await pool.execute_query_async(notes, "SELECT id, body FROM notes WHERE id = :id", {"id": 2})

    assert bodies(pool, notes) == ["one", "two", "three"]
    assert (found[0].id, found[0]["body"], found[0][1]) == (2, "two", "two")
    await pool.stop_async()


async def test_many_rows_are_stored_from_any_iterable(pool: SQLPool, notes: DatabaseConfig) -> None:
    """execute_many and copy_rows take generators and return how many there were."""
    insert = "INSERT INTO notes (body) VALUES (?)"

    assert pool.execute_many(notes, insert, ((f"m{n}",) for n in range(700))) == 700
    assert pool.copy_rows(notes, "notes", ["body"], ([f"c{n}"] for n in range(1300))) == 1300
    assert await pool.execute_many_async(notes, insert, ((f"a{n}",) for n in range(700))) == 700
    assert await pool.copy_rows_async(notes, "notes", ["body"], [(f"d{n}",) for n in range(1300)]) == 1300
    assert len(bodies(pool, notes)) == 4000
    assert pool.copy_rows(notes, "notes", ["body"], []) == 0
    await pool.stop_async()


async def test_many_rows_are_stored_all_or_none(pool: SQLPool, notes: DatabaseConfig) -> None:
    """One bad row takes the others back with it and costs no connection."""
    rows = [("kept?",), (None,)]
    with pytest.raises(Exception, match=r"(?i)null"):
        pool.execute_many(notes, "INSERT INTO notes (body) VALUES (?)", rows)
    with pytest.raises(Exception, match=r"(?i)null"):
        pool.copy_rows(notes, "notes", ["body"], rows)
    with pytest.raises(Exception, match=r"(?i)null"):
        await pool.execute_many_async(notes, "INSERT INTO notes (body) VALUES (?)", rows)
    with pytest.raises(Exception, match=r"(?i)null"):
        await pool.copy_rows_async(notes, "notes", ["body"], rows)

    assert bodies(pool, notes) == []
    assert discarded(pool) == 0
    await pool.stop_async()


async def test_rows_by_name_are_stored_by_name(pool: SQLPool, notes: DatabaseConfig) -> None:
    """copy_rows() takes mappings in any order, and rows of the pool's own, and stores the values of its columns."""
    columns = ["id", "body"]
    assert pool.copy_rows(notes, "notes", columns, [{"body": "a", "id": 1, "other": 0}]) == 1
    assert await pool.copy_rows_async(notes, "notes", columns, [{"body": "b", "id": 2}]) == 1
    copied = pool.execute_query(notes, "SELECT id + 2 AS id, body FROM notes")
    assert pool.copy_rows(notes, "notes", columns, copied) == 2
    assert bodies(pool, notes) == ["a", "b", "a", "b"]
    await pool.stop_async()


@pytest.mark.parametrize(
    ("columns", "row", "error", "complaint"),
    [
        (["id", "body"], {"id": 1}, KeyError, "no value for the column.*body"),
        (["id", "body"], "1x", TypeError, "a row is a sequence or a mapping"),
        (["id", "body"], b"1x", TypeError, "a row is a sequence or a mapping"),
        (["id", "body"], 1, TypeError, "a row is a sequence or a mapping"),
        ("body", ("x",), TypeError, r"for one column write \['body'\]"),
        ([], (), ValueError, "needs the names of the columns"),
    ],
)
async def test_rows_that_do_not_fit_their_columns_are_an_error(
    pool: SQLPool, notes: DatabaseConfig, columns: str | list[str], row: object, error: type[Exception], complaint: str
) -> None:
    """copy_rows() says what it wants, stores nothing, and keeps its connection."""
    with pytest.raises(error, match=complaint):
        pool.copy_rows(notes, "notes", columns, [row])  # type: ignore[list-item]
    with pytest.raises(error, match=complaint):
        await pool.copy_rows_async(notes, "notes", columns, [row])  # type: ignore[list-item]
    assert bodies(pool, notes) == []
    await eventually_async(lambda: active(pool) == 0)  # asyncpg has the server answer first
    assert discarded(pool) == 0
    await pool.stop_async()


async def test_placeholders_without_values_are_an_error_that_counts_them(
    pool: SQLPool, database: DatabaseConfig
) -> None:
    """No driver sends a statement whose placeholders nobody has filled."""
    for missing in ((), [], None):
        with pytest.raises(Exception, match=r"\b1\b.*\b0\b"):
            pool.execute_query(database, "SELECT ?", missing)  # type: ignore[arg-type]
        with pytest.raises(Exception, match=r"\b1\b.*\b0\b"):
            await pool.execute_query_async(database, "SELECT ?", missing)  # type: ignore[arg-type]
    assert pool.execute_query(database, "SELECT 7 % 4") == [(3,)]
    await pool.stop_async()


@pytest.mark.parametrize("batch", [0, -1, 1.5, "5", True, None])
async def test_a_batch_that_is_no_number_of_rows_is_refused(
    pool: SQLPool, database: DatabaseConfig, batch: Any
) -> None:
    """Every driver would make something else of it; the call itself fails, before a connection is leased."""
    with pytest.raises(ConfigError, match=r"batch=.*must be an int from 1 up"):
        pool.stream(database, "SELECT 1", batch=batch)
    with pytest.raises(ConfigError, match=r"batch=.*must be an int from 1 up"):
        pool.stream_async(database, "SELECT 1", batch=batch)


async def test_what_is_no_config_is_refused_unseen(pool: SQLPool) -> None:
    """A path or a URL in its place is a TypeError that says how to make one, and shows no password."""
    url: Any = "postgresql://ada:hunter2@db/x"
    for call in (pool.execute_query, pool.execute_query_async):
        with pytest.raises(TypeError, match=r"DatabaseConfig is needed, not str.*from_url") as caught:
            await call(url, "SELECT 1")  # type: ignore[misc]
        assert "hunter2" not in str(caught.value)
    with pytest.raises(TypeError, match="not str"), pool.connection(url):
        pass


async def test_a_stream_yields_every_row_in_order(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Batches are a detail of the fetching."""
    pool.copy_rows(notes, "notes", ["body"], ([str(n)] for n in range(1000)))
    query = "SELECT id, body FROM notes WHERE id > ? ORDER BY id"

    assert [row.body for row in pool.stream(notes, query, (10,), batch=64)] == [str(n) for n in range(10, 1000)]
    found = [row.body async for row in pool.stream_async(notes, query, (10,), batch=64)]
    assert found == [str(n) for n in range(10, 1000)]
    assert active(pool) == 0
    await pool.stop_async()


async def test_a_stream_that_is_left_early_gives_its_connection_back(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Closing, dropping or breaking off a stream ends its lease and leaves nothing open."""
    pool.copy_rows(notes, "notes", ["body"], ([str(n)] for n in range(1000)))
    query = "SELECT body FROM notes"
    for _ in range(20):
        stream = pool.stream(notes, query, batch=10)
        assert next(stream).body
        del stream
    async with asyncio.timeout(60):
        for _ in range(20):
            async for row in pool.stream_async(notes, query, batch=10):
                assert row.body
                break
    gc.collect()
    await asyncio.sleep(0)

    deadline = asyncio.get_running_loop().time() + 20
    while active(pool):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    pool.execute_query(notes, "INSERT INTO notes (body) VALUES ('free')")
    await pool.stop_async()


def test_an_error_in_the_statement_does_not_cost_a_connection(pool: SQLPool, notes: DatabaseConfig) -> None:
    """After a syntax error the same connection serves the next call."""
    for _ in range(5):
        with pytest.raises(Exception, match="SELEKT"):
            pool.execute_query(notes, "SELEKT")

    assert pool.get_stats()["metrics"]["pool_misses"] == 1
    assert discarded(pool) == 0


async def test_an_error_in_a_tasks_statement_does_not_cost_a_connection(pool: SQLPool, notes: DatabaseConfig) -> None:
    """The same with asyncio."""
    for _ in range(5):
        with pytest.raises(Exception, match="SELEKT"):
            await pool.execute_query_async(notes, "SELEKT")

    assert discarded(pool) == 0
    await pool.stop_async()


def test_nobody_sees_or_commits_anothers_unfinished_insert(
    pool: SQLPool, notes: DatabaseConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """It is rolled back, and reported once with the place, however often it happens there."""
    for _ in range(3):
        with pool.connection(notes) as connection:
            connection.execute(text("INSERT INTO notes (body) VALUES ('unfinished')"))
    with pool.connection(notes) as connection:
        connection.commit()

    assert bodies(pool, notes) == []
    (report,) = [record for record in caplog.records if "left unfinished" in record.message]
    assert "test_databases.py" in report.message


def test_a_connection_that_only_read_is_not_reported(
    pool: SQLPool, notes: DatabaseConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """A read without a commit is fine."""
    with pool.connection(notes) as connection:
        connection.execute(text("SELECT * FROM notes")).all()

    assert not [record for record in caplog.records if "left unfinished" in record.message]


async def test_what_a_session_did_not_commit_is_reported(
    pool: SQLPool, notes: DatabaseConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that ends with writes, new or modified objects uncommitted is reported, for threads and tasks alike."""
    with pool.session(notes) as session:
        session.execute(text("INSERT INTO notes (body) VALUES ('written')"))
    with pool.session(notes) as session:
        session.add(Note(body="not even written"))
    async with pool.session(notes) as asynchronous:
        await asynchronous.execute(text("INSERT INTO notes (body) VALUES ('written')"))
    with pool.session(notes) as session:
        session.execute(text("SELECT * FROM notes")).all()
        session.add(Note(body="kept"))
        session.commit()
    with pool.session(notes) as session:
        session.scalars(select(Note)).one().body = "not kept"
    with pool.session(notes) as session:
        session.scalars(select(Note)).one().body = "kept"  # as it was

    assert bodies(pool, notes) == ["kept"]
    reports = [record for record in caplog.records if "left unfinished" in record.message]
    assert len(reports) == 4
    assert all("test_databases.py" in report.message for report in reports)
    await pool.stop_async()


async def test_a_transaction_opened_by_text_does_not_reach_the_next_borrower(
    pool: SQLPool, notes: DatabaseConfig
) -> None:
    """BEGIN, or SQLite's SAVEPOINT, through execute_query is rolled back at the end of the call."""
    begin = "SAVEPOINT own" if notes.backend == "sqlite" else "BEGIN"
    for opening in ("BEGIN", begin):
        pool.execute_query(notes, opening)
        await pool.execute_query_async(notes, opening)
    pool.execute_query(notes, "INSERT INTO notes (body) VALUES ('own')")
    await pool.execute_query_async(notes, "INSERT INTO notes (body) VALUES ('own too')")

    assert bodies(pool, notes) == ["own", "own too"]
    await pool.stop_async()


async def test_transactions_commit_or_roll_back(pool: SQLPool, notes: DatabaseConfig) -> None:
    """A block that ends keeps its work; one that raises keeps nothing, its DDL included."""

    def fail() -> None:
        with pool.transaction(notes) as connection:
            connection.execute(text("INSERT INTO notes (body) VALUES ('dropped')"))
            connection.execute(text("CREATE TABLE also_dropped (id INTEGER)"))
            raise ZeroDivisionError

    async def fail_async() -> None:
        async with pool.transaction(notes) as connection:
            await connection.execute(text("INSERT INTO notes (body) VALUES ('dropped')"))
            await connection.execute(text("CREATE TABLE also_dropped (id INTEGER)"))
            raise ZeroDivisionError

    with pool.transaction(notes) as connection:
        connection.execute(text("INSERT INTO notes (body) VALUES ('kept')"))
    async with pool.transaction(notes) as connection:
        await connection.execute(text("INSERT INTO notes (body) VALUES ('kept too')"))
    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ZeroDivisionError):
        await fail_async()

    assert bodies(pool, notes) == ["kept", "kept too"]
    pool.execute_query(notes, "CREATE TABLE also_dropped (id INTEGER)")
    await pool.stop_async()


async def test_a_readonly_transaction_refuses_to_write(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Reading works, in a savepoint too, writing is an error, and the connection writes again for the next borrower."""
    insert = text("INSERT INTO notes (body) VALUES ('x')")
    with pool.transaction(notes, readonly=True) as connection:
        with connection.begin_nested():
            assert connection.execute(text("SELECT count(*) FROM notes")).scalar() == 0
        with pytest.raises(DBAPIError, match=r"(?i)read-?only"):
            connection.execute(insert)
    async with pool.transaction(notes, readonly=True) as connection:
        with pytest.raises(DBAPIError, match=r"(?i)read-?only"):
            await connection.execute(insert)
    with pool.transaction(notes) as connection:
        connection.execute(insert)
    async with pool.transaction(notes) as connection:
        await connection.execute(insert)

    assert bodies(pool, notes) == ["x", "x"]
    await pool.stop_async()


async def test_the_orm_works_on_leased_sessions(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Session and AsyncSession store and find objects, which stay readable after the block."""
    with pool.session(notes) as session:
        first = Note(body="sync")
        session.add(first)
        session.commit()
    async with pool.session(notes) as session:
        second = Note(body="async")
        session.add(second)
        await session.commit()

    assert [(first.id, first.body), (second.id, second.body)] == [(1, "sync"), (2, "async")]
    assert bodies(pool, notes) == ["sync", "async"]
    await pool.stop_async()


async def test_engines_work_unchanged_on_the_pool(pool: SQLPool, notes: DatabaseConfig) -> None:
    """What is written for SQLAlchemy's engines works on the pool's, and dispose() keeps the pool."""
    engine = pool.engine(notes)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO notes (body) VALUES ('by the engine')"))
    engine.dispose()
    async_engine = pool.async_engine(notes)
    async with async_engine.begin() as connection:
        await connection.execute(text("INSERT INTO notes (body) VALUES ('by the other')"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("INSERT INTO notes (body) VALUES ('at once')"))

    assert bodies(pool, notes) == ["by the engine", "by the other", "at once"]
    assert active(pool) == 0
    await pool.stop_async()


def test_a_timeout_ends_the_wait_for_a_connection_too(pool: SQLPool, notes: DatabaseConfig) -> None:
    """With all connections leased a call with a timeout ends with who holds them."""
    leases = [pool.connection(notes) for _ in range(4)]
    for lease in leases:
        lease.__enter__()
    with pytest.raises(PoolTimeout, match=r"4 of 4 in use.*test_databases\.py"):
        pool.execute_query(notes, "SELECT 1", timeout=0.05)
    for lease in leases:
        lease.__exit__(None, None, None)

    assert pool.execute_query(notes, "SELECT 1", timeout=20) == [(1,)]


async def test_the_cap_holds_for_threads_and_tasks_together(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Four connections are all there are, whoever asks."""
    most = 0

    def read(number: int) -> None:
        nonlocal most
        pool.execute_query(notes, "SELECT 1")
        most = max(most, pool.get_stats()["metrics"]["total_connections"])

    async def write(number: int) -> None:
        async with pool.transaction(notes) as connection:
            await connection.execute(text("INSERT INTO notes (body) VALUES (:body)"), {"body": str(number)})

    with ThreadPoolExecutor(20) as threads:
        loop = asyncio.get_running_loop()
        reads = [loop.run_in_executor(threads, read, number) for number in range(100)]
        await asyncio.gather(*reads, *(write(number) for number in range(30)))

    assert len(bodies(pool, notes)) == 30
    assert most <= 4
    assert active(pool) == 0
    await pool.stop_async()


async def test_the_figures_say_what_threads_and_tasks_have_taken_together(
    pool: SQLPool, database: DatabaseConfig
) -> None:
    """Each side's figures have the cap that both share, and how much of it both have taken."""
    with pool.connection(database), pool.connection(database):
        async with pool.connection(database):
            figures = pool.get_stats()["pools"].values()
            assert sorted(each["total"] for each in figures) == [1, 2]
            assert [(each["taken"], each["capacity"]) for each in figures] == [(3, 4)] * 2
            assert "taken 3, capacity 4" in pool.engine(database).pool.status()
    await pool.stop_async()


def test_a_paused_database_lends_nothing_until_it_is_resumed(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Callers wait while it is paused, and go on afterwards."""
    pool.pause(notes)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(pool.execute_query, notes, "SELECT 1")
        eventually(lambda: pool.get_stats()["pools"][notes.label]["waiting"] == 1)
        with pytest.raises(PoolTimeout):
            pool.execute_query(notes, "SELECT 1", timeout=0.05)
        pool.resume(notes)

        assert call.result(20) == [(1,)]


@pytest.mark.parametrize("of_all", [False, True], ids=["resumed alone", "resumed with all"])
async def test_a_paused_database_lends_nothing_in_a_new_event_loop(
    pool: SQLPool, database: DatabaseConfig, of_all: bool
) -> None:
    """A loop that comes after the pause waits as well, until the database, or every one, is resumed."""
    pool.execute_query(database, "SELECT 1")
    pool.pause(database)
    with pytest.raises(PoolTimeout):
        async with pool.connection(database, timeout=0.05):
            pytest.fail("a paused database was lent")

    pool.resume(None if of_all else database)

    async with pool.connection(database) as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1
    await pool.stop_async()


async def test_a_database_resumed_alone_is_lent_in_a_new_event_loop(pool: SQLPool, database: DatabaseConfig) -> None:
    """After a pause of all it is lent to threads and tasks, known before or not, until the next pause."""
    pool.execute_query(database, "SELECT 1")
    pool.pause()
    pool.resume(database)
    assert pool.execute_query(database, "SELECT 1", timeout=20) == [(1,)]
    assert await pool.execute_query_async(database, "SELECT 1", timeout=20) == [(1,)]

    other = replace(database, application_name="another")
    with pytest.raises(PoolTimeout, match="paused"):
        pool.execute_query(other, "SELECT 1", timeout=0.05)
    pool.resume(other)
    assert await pool.execute_query_async(other, "SELECT 1", timeout=20) == [(1,)]

    pool.pause()
    unknown = replace(database, application_name="one more")
    for paused in (database, other, unknown):
        with pytest.raises(PoolTimeout, match="paused"):
            await pool.execute_query_async(paused, "SELECT 1", timeout=0.05)
    pool.resume()
    assert await pool.execute_query_async(database, "SELECT 1", timeout=20) == [(1,)]
    await pool.stop_async()


@pytest.mark.parametrize("act", [SQLPool.pause, SQLPool.resume])
def test_whoever_pauses_a_database_as_the_pool_stops_is_told_so(act: Callable[[SQLPool, DatabaseConfig], None]) -> None:
    """A pause, and a resumption, that meets a stop is done or raises PoolClosed, and nothing else."""
    pool, memory = SQLPool(), get_sqlite_config(":memory:")
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            with suppress(PoolClosed):
                act(pool, memory)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as threads:
            acting = threads.submit(go_on)
            try:
                for _ in range(2_000):
                    pool.start()
                    pool.stop()
            finally:
                over.set()
            acting.result(20)
    finally:
        sys.setswitchinterval(before)


def test_housekeeping_makes_no_connection_of_a_paused_database(postgres: DatabaseConfig) -> None:
    """The least number of connections is kept again from the resumption on."""

    def total() -> int:
        pool.sweep()
        return pool.get_stats()["metrics"]["total_connections"]

    with SQLPool(SQLPoolSettings(max_connections=4, min_connections=3)) as pool:
        pool.execute_query(postgres, "SELECT 1")
        pool.pause(postgres)
        before = pool.get_stats()["metrics"]["total_connections"]
        assert total() == before
        pool.resume(postgres)
        assert total() == 3


def test_warming_up_opens_the_least_number_of_connections(database: DatabaseConfig) -> None:
    """After warm_up() the first callers find connections, and the idle timeout leaves that many."""
    settings = SQLPoolSettings(max_connections=5, min_connections=3, max_idle_time=0.001)
    with SQLPool(settings) as pool:
        pool.warm_up(database)
        eventually(lambda: pool.sweep() or pool.get_stats()["metrics"]["total_connections"] == 3)
        pool.execute_query(database, "SELECT 1")

        assert pool.get_stats()["metrics"]["pool_misses"] == 0


def test_connections_end_after_their_lifetime(database: DatabaseConfig) -> None:
    """An idle connection older than max_lifetime is replaced."""
    with SQLPool(SQLPoolSettings(max_lifetime=0.01, min_connections=0)) as pool:
        pool.execute_query(database, "SELECT 1")
        eventually(lambda: pool.sweep() or pool.get_stats()["metrics"]["total_connections"] == 0)

        assert pool.execute_query(database, "SELECT 1") == [(1,)]
        assert pool.get_stats()["metrics"]["cleanup_count"] >= 1


def test_a_lease_held_too_long_is_reported_with_its_stack(
    database: DatabaseConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """The leak report names the code that holds the connection."""
    caplog.set_level(logging.WARNING)
    with SQLPool(SQLPoolSettings(leak_threshold=0.01)) as pool, pool.connection(database):
        eventually(lambda: pool.sweep() or "was not given back yet" in caplog.text)

        assert "test_databases.py" in caplog.text


def test_stop_returns_soon_although_many_wait(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Stopping fails those who wait at once, and waits for the leases only as long as it was told."""
    leases = [pool.connection(notes) for _ in range(4)]
    for lease in leases:
        lease.__enter__()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(pool.execute_query, notes, "SELECT 1") for _ in range(8)]
        eventually(lambda: sum(each["waiting"] for each in pool.get_stats()["pools"].values()) == 8)
        began = time.monotonic()
        with pytest.raises(LeaseLeaked):
            pool.stop(0.2)
        for each in waiting:
            with pytest.raises(PoolClosed):
                each.result(20)
        assert time.monotonic() - began < 10  # they would wait for 20 s
    for lease in leases:
        lease.__exit__(None, None, None)
    assert active(pool) == 0


@pytest.fixture
def endless(database: DatabaseConfig) -> str:
    return (
        "SELECT pg_sleep(60)"
        if database.backend == "postgresql"
        else "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    )


async def test_a_statement_ends_at_its_timeout(pool: SQLPool, database: DatabaseConfig, endless: str) -> None:
    """QueryTimeout names the database and the limit; the pool goes on."""
    pool.execute_query(database, "SELECT 1")  # who has to connect first may find the time over
    await pool.execute_query_async(database, "SELECT 1")
    with pytest.raises(QueryTimeout, match=r"did not end within 0\.1 s"):
        pool.execute_query(database, endless, timeout=0.1)
    with pytest.raises(QueryTimeout, match=r"did not end within 0\.1 s"):
        await pool.execute_query_async(database, endless, timeout=0.1)

    assert pool.execute_query(database, "SELECT 1") == [(1,)]
    assert await pool.execute_query_async(database, "SELECT 1") == [(1,)]
    await pool.stop_async()


def test_a_database_that_cannot_be_opened_is_an_error_that_says_why(tmp_path: object, pool: SQLPool) -> None:
    """DatabaseUnavailable wraps the driver's error, at once."""
    with pytest.raises(DatabaseUnavailable, match="unable to open database file") as caught:
        pool.execute_query(get_sqlite_config(f"{tmp_path}/no/such/folder/x.db"), "SELECT 1")

    assert caught.value.__cause__ is not None


def test_a_server_side_limit_ends_statements(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """statement_timeout reaches PostgreSQL."""
    limited = replace(postgres, statement_timeout=0.05)

    with pytest.raises(Exception, match="statement timeout"):
        pool.execute_query(limited, "SELECT pg_sleep(30)")


async def test_an_unknown_retry_is_refused(pool: SQLPool, notes: DatabaseConfig) -> None:
    """retry= takes "read" and nothing else, also for a statement that would not be repeated."""
    for sql in ("SELECT 1", "INSERT INTO notes (body) VALUES ('x')"):
        with pytest.raises(ConfigError, match="retry='always' is not allowed; it must be 'read', or None"):
            pool.execute_query(notes, sql, retry="always")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="retry='always' is not allowed"):
            await pool.execute_query_async(notes, sql, retry="always")  # type: ignore[arg-type]
    assert bodies(pool, notes) == []
    await pool.stop_async()


async def test_a_percent_sign_is_no_placeholder(pool: SQLPool, notes: DatabaseConfig) -> None:
    """A text without placeholders is executed for each empty set of parameters, percent signs and all."""
    assert pool.execute_many(notes, "INSERT INTO notes (body) VALUES ('100%')", [(), ()]) == 2
    assert await pool.execute_many_async(notes, "INSERT INTO notes (body) VALUES ('5 %s')", [()]) == 1
    assert pool.execute_many(notes, "INSERT INTO notes (body) VALUES ('7%' || ?)", [("!",)]) == 1
    assert bodies(pool, notes) == ["100%", "100%", "5 %s", "7%!"]
    await pool.stop_async()


async def test_whatever_returns_rows_can_be_streamed(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Not only queries: what was stored comes back as a stream, and so does a plan."""
    insert = "INSERT INTO notes (body) SELECT body FROM (VALUES ('a'), ('b'), ('c')) AS new(body) RETURNING body"
    if notes.backend == "sqlite":
        insert = "INSERT INTO notes (body) VALUES ('a'), ('b'), ('c') RETURNING body"

    assert [row.body for row in pool.stream(notes, insert, batch=2)] == ["a", "b", "c"]
    assert [row.body async for row in pool.stream_async(notes, insert, batch=2)] == ["a", "b", "c"]
    assert bodies(pool, notes) == ["a", "b", "c"] * 2
    assert list(pool.stream(notes, "EXPLAIN SELECT 1"))
    assert active(pool) == 0
    await pool.stop_async()


async def test_settings_can_be_streamed(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """SHOW, for which PostgreSQL declares no cursor, is a stream for threads as it is for tasks."""
    assert [tuple(row) for row in pool.stream(postgres, "SHOW client_encoding")] == [("UTF8",)]
    assert [tuple(row) async for row in pool.stream_async(postgres, "SHOW client_encoding")] == [("UTF8",)]
    rows = pool.stream(postgres, "SHOW ALL", batch=5)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert pool.execute_query(postgres, "SELECT 1") == [(1,)]
    assert discarded(pool) == 0
    await pool.stop_async()


async def test_the_kernel_watches_the_peers_of_both_drivers(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """Connections over TCP are kept alive, and end when their peer no longer acknowledges anything."""
    pool.execute_query(postgres, "SELECT 1")
    await pool.execute_query_async(postgres, "SELECT 1")
    (thread,), (task,) = (list(side.bucket._entries) for side in (pool._sync(postgres), pool._async(postgres)))
    sockets = [thread.resource.raw.fileno(), task.resource.raw._transport.get_extra_info("socket").fileno()]
    for descriptor in sockets:
        with socket.socket(fileno=os.dup(descriptor)) as same:
            assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    await pool.stop_async()


@pytest.mark.parametrize("before", [0, 8], ids=["by cursor", "prepared"])
@pytest.mark.parametrize(("rows", "size"), [(1000, 1000), (1, 10_000_000), (2, 1)])
def test_no_result_is_kept(pool: SQLPool, postgres: DatabaseConfig, rows: int, size: int, before: int) -> None:
    """An idle connection does not hold on to what its last caller got or gave, many rows or large ones."""
    wanted = "SELECT repeat('x', ?) FROM generate_series(1, ?)"
    for _ in range(before):
        pool.execute_query(postgres, wanted, (size, rows))
    assert len(pool.execute_query(postgres, wanted, (size, rows))) == rows
    (entry,) = pool._sync(postgres).bucket._entries
    fetcher = entry.resource.fetcher
    cursor = fetcher._cursor
    assert (cursor.pgresult, cursor._results, cursor._tx.pgresult, cursor._query) == (None, [], None, None)
    kept = [(query._tx.pgresult, query.params) for query in fetcher._queries.values()]
    assert kept == ([(None, None)] if before else [])
    assert len(pool.execute_query(postgres, wanted, (1, 1))) == 1
    assert entry.resource.fetcher is fetcher


async def test_a_text_of_several_statements_is_refused(pool: SQLPool, database: DatabaseConfig) -> None:
    """On every database every call for threads and for tasks says what to do instead, and executes none of them."""
    pool.execute_query(database, "CREATE TABLE several (n int)")
    several = "INSERT INTO several VALUES (1); INSERT INTO several VALUES (2)"
    advice = r"one call for each.*pool\.transaction"

    with pytest.raises(ValueError, match=advice):
        pool.execute_query(database, several)
    with pytest.raises(ValueError, match=advice):
        pool.execute_query(database, "SELECT 1; SELECT 2", timeout=20, retry="read")
    with pytest.raises(ValueError, match=advice):
        pool.execute_many(database, several, [(), ()])
    with pytest.raises(ValueError, match=advice):
        next(iter(pool.stream(database, "SELECT 1; SELECT 2")))
    with pytest.raises(ValueError, match=advice):
        await pool.execute_query_async(database, several)
    with pytest.raises(ValueError, match=advice):
        await pool.execute_many_async(database, several, [(), ()])
    assert pool.execute_query(database, "SELECT count(*) FROM several") == [(0,)]
    await pool.stop_async()


async def test_one_statement_may_have_semicolons(pool: SQLPool, database: DatabaseConfig) -> None:
    """At its end, in what is quoted and commented, and in the body of a trigger or a function."""
    for one in ("; SELECT ';', 1 AS \"a;b\"; -- ; SELECT 2\n/* ; */", "SELECT ';', 1;; ;\n"):
        assert pool.execute_query(database, one) == [(";", 1)]
        assert await pool.execute_query_async(database, one) == [(";", 1)]

    for table in ("watched", "negated"):
        pool.execute_query(database, f"CREATE TABLE {table} (n int)")
    body = "INSERT INTO negated VALUES (-new.n); INSERT INTO negated SELECT CASE WHEN true THEN 0 END;"
    if database.backend == "sqlite":
        pool.execute_query(database, f"CREATE TRIGGER negates AFTER INSERT ON watched BEGIN {body} END;")
    else:
        pool.execute_query(database, f"CREATE RULE negates AS ON INSERT TO watched DO ALSO ({body})")
        procedure = f"CREATE OR REPLACE PROCEDURE negate(new watched) BEGIN ATOMIC {body} END"
        pool.execute_query(database, procedure)
        await pool.execute_query_async(database, f"{procedure};")
    pool.execute_query(database, "INSERT INTO watched VALUES (7)")
    assert pool.execute_query(database, "SELECT n FROM negated ORDER BY n") == [(-7,), (0,)]
    await pool.stop_async()


@pytest.mark.parametrize("sql", ["COPY t FROM STDIN", "-- all\ncopy t (a) to  stdout (FORMAT csv)"])
async def test_a_copy_that_nobody_would_feed_or_read_is_refused(
    pool: SQLPool, postgres: DatabaseConfig, sql: str
) -> None:
    """COPY from or to the client fails at once, names what to use, and costs no connection."""
    pool.execute_query(postgres, "CREATE TABLE t (a int)")

    with pytest.raises(ValueError, match=r"use copy_rows\(\)"):
        pool.execute_query(postgres, sql)
    with pytest.raises(ValueError, match=r"use copy_rows\(\)"):
        await asyncio.wait_for(pool.execute_query_async(postgres, sql), 20)
    assert await pool.execute_query_async(postgres, "SELECT a FROM t") == []
    await pool.stop_async()


@pytest.mark.parametrize("call", ["execute", "fetch", "fetchrow", "fetchval", "prepare", "cursor", "exec_driver_sql"])
@pytest.mark.parametrize("sql", ["COPY t FROM STDIN", "SELECT 1; /* all */ COPY t TO STDOUT"])
async def test_a_copy_in_a_tasks_lease_is_refused(postgres: DatabaseConfig, call: str, sql: str) -> None:
    """asyncpg would wait for ever, and so would who has the connection next; what it has for COPY works."""
    pool = SQLPool(SQLPoolSettings(max_connections=1))
    await pool.execute_query_async(postgres, "CREATE TABLE t (a int)")
    async with asyncio.timeout(20):
        async with pool.connection(postgres) as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            with pytest.raises(ValueError, match=r"use copy_rows\(\)"):
                await getattr(connection if call == "exec_driver_sql" else raw, call)(sql)
            await raw.copy_records_to_table("t", records=[(1,), (2,)])
            await connection.commit()
        assert await pool.execute_query_async(postgres, "SELECT a FROM t") == [(1,), (2,)]
    await pool.stop_async()


@pytest.mark.parametrize("sql", ["COPY t FROM STDIN", "COPY t TO STDOUT"])
def test_a_copy_in_a_threads_lease_is_refused(
    postgres: DatabaseConfig, sql: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs no connection and no complaint about a rollback that failed; what psycopg has for COPY works."""
    with SQLPool(SQLPoolSettings(max_connections=1)) as pool:
        pool.execute_query(postgres, "CREATE TABLE t (a int)")
        with pool.connection(postgres) as connection:
            with pytest.raises(ValueError, match=r"use copy_rows\(\)"):
                connection.exec_driver_sql(sql)
            raw: Any = connection.connection.driver_connection
            with raw.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
                copy.write_row((1,))
            connection.commit()
        assert pool.execute_query(postgres, "SELECT a FROM t") == [(1,)]
        assert discarded(pool) == 0
    assert caplog.text == ""


async def test_none_is_no_parameters(pool: SQLPool, database: DatabaseConfig) -> None:
    """With None in place of the parameters a text without placeholders is executed, for threads and tasks."""
    assert pool.execute_query(database, "SELECT 1", None) == [(1,)]  # type: ignore[arg-type]
    assert await pool.execute_query_async(database, "SELECT 1", None) == [(1,)]  # type: ignore[arg-type]
    assert list(pool.stream(database, "SELECT 1", None)) == [(1,)]  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pass a mapping"):
        pool.execute_query(database, "SELECT :a", None)  # type: ignore[arg-type]
    await pool.stop_async()


async def test_a_new_column_fails_no_statement_that_is_prepared(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """A statement that its driver has prepared returns the table's new columns after a migration elsewhere."""
    pool.execute_query(postgres, "CREATE TABLE plans (id INT, a INT)")
    pool.execute_query(postgres, "INSERT INTO plans VALUES (1, 2)")
    wanted = "SELECT * FROM plans WHERE id = ?"
    for _ in range(8):
        pool.execute_query(postgres, wanted, (1,))
        await pool.execute_query_async(postgres, wanted, (1,))
    process = pool.execute_query(postgres, "SELECT pg_backend_pid()")

    with SQLPool() as migration:
        migration.execute_query(postgres, "ALTER TABLE plans ADD COLUMN b INT")

    for _ in range(8):
        assert pool.execute_query(postgres, wanted, (1,)) == [(1, 2, None)]
        assert await pool.execute_query_async(postgres, wanted, (1,)) == [(1, 2, None)]
    assert pool.execute_query(postgres, "SELECT pg_backend_pid()") == process
    await pool.stop_async()


def test_an_outdated_statement_costs_a_lease_its_connection(postgres: DatabaseConfig) -> None:
    """A lease whose prepared statement a migration has outdated fails once: the next one works."""
    wanted = text("SELECT * FROM plans")
    with SQLPool(SQLPoolSettings(max_connections=1)) as pool, SQLPool() as migration:
        migration.execute_query(postgres, "CREATE TABLE plans (id INT)")

        def ask() -> object:
            with pool.engine(postgres).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                return connection.execute(wanted).all()

        for _ in range(8):
            ask()
        migration.execute_query(postgres, "ALTER TABLE plans ADD COLUMN b INT")
        with pytest.raises(DBAPIError, match="cached plan"):
            ask()
        assert ask() == []


def test_ctrl_c_is_not_taken_for_a_lost_connection(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """An interrupt reaches the caller as it is, also when the connection ends with it."""
    pool.execute_query(postgres, "SELECT 1")
    (entry,) = pool._sync(postgres).bucket._entries

    def end(_number: int, _frame: object) -> None:
        entry.resource.raw.close()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            pool.execute_query(postgres, "SELECT pg_sleep(20)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert active(pool) == 0
    assert pool.execute_query(postgres, "SELECT 1") == [(1,)]
