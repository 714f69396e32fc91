"""The SQL pool on SQLite, in files and in memory."""

import asyncio
import gc
import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.pools.errors import LeaseLeaked, PoolClosed, PoolTimeout
from app.pools.sql_pool import Database, DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config
from app.pools.sql_pool.writers import Wish, writer_lock


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


@pytest.fixture
def notes(pool: SQLPool, sqlite: DatabaseConfig) -> DatabaseConfig:
    pool.execute_query(sqlite, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
    return sqlite


def count(pool: SQLPool, config: DatabaseConfig) -> int:
    found: int = pool.execute_query(config, "SELECT count(*) AS found FROM notes")[0].found
    return found


def active(pool: SQLPool) -> int:
    return pool.get_stats()["metrics"]["active_connections"]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("INSERT INTO notes (body) VALUES ('x') RETURNING id, body", [(1, "x")]),
        ("WITH pair(a, b) AS (VALUES (1, 2)) SELECT a, b FROM pair", [(1, 2)]),
        ("VALUES (1), (2)", [(1,), (2,)]),
        ("PRAGMA foreign_keys", [(1,)]),
        ("-- a comment\n/* and another */ SELECT 7", [(7,)]),
        ("INSERT INTO notes (body) VALUES ('x')", []),
    ],
)
def test_rows_come_back_whenever_the_database_returned_any(
    pool: SQLPool, notes: DatabaseConfig, sql: str, expected: list[tuple[object, ...]]
) -> None:
    """Rows depend on the result, not on the text's first word."""
    assert expected == pool.execute_query(notes, sql)


def test_rows_answer_by_position_name_and_attribute(pool: SQLPool, notes: DatabaseConfig) -> None:
    """A row is a tuple, and knows its columns."""
    pool.execute_query(notes, "INSERT INTO notes (body) VALUES (:body)", {"body": "hello"})

    (row,) = pool.execute_query(notes, "SELECT id, body FROM notes")

    assert (row[0], row["body"], row.id) == (1, "hello", 1)
    assert row._asdict() == {"id": 1, "body": "hello"}


def test_execute_many_takes_a_generator_and_returns_the_count(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Any iterable of parameter sets is stored, and the number of rows returned."""
    assert pool.execute_many(notes, "INSERT INTO notes (body) VALUES (?)", ((str(n),) for n in range(100))) == 100
    assert count(pool, notes) == 100


def test_execute_many_stores_all_or_nothing(pool: SQLPool, notes: DatabaseConfig) -> None:
    """A failing row takes the others back with it, and the connection stays."""
    with pytest.raises(sqlite3.IntegrityError):
        pool.execute_many(notes, "INSERT INTO notes (body) VALUES (?)", [("kept?",), (None,)])

    assert count(pool, notes) == 0
    assert pool.get_stats()["pools"][notes.label]["discarded"] == 0


def test_an_error_in_the_statement_does_not_cost_a_connection(pool: SQLPool, notes: DatabaseConfig) -> None:
    """After a syntax error the same connection serves the next call."""
    for _ in range(5):
        with pytest.raises(sqlite3.OperationalError):
            pool.execute_query(notes, "SELEKT")

    assert pool.get_stats()["metrics"]["pool_misses"] == 1


def test_what_is_not_committed_is_rolled_back_and_nobody_sees_it(pool: SQLPool, notes: DatabaseConfig) -> None:
    """The next borrower neither sees nor commits another's unfinished INSERT."""
    with pool.connection(notes) as connection:
        connection.execute(text("INSERT INTO notes (body) VALUES ('unfinished')"))

    with pool.connection(notes) as connection:
        assert connection.execute(text("SELECT count(*) FROM notes")).scalar() == 0
        connection.commit()
    assert count(pool, notes) == 0


def test_a_transaction_commits_at_its_end_and_rolls_back_when_it_fails(pool: SQLPool, notes: DatabaseConfig) -> None:
    """A block that ends keeps its work, one that raises keeps nothing, its DDL included."""
    with pool.transaction(notes) as connection:
        connection.execute(text("INSERT INTO notes (body) VALUES ('kept')"))
    with pytest.raises(ZeroDivisionError), pool.transaction(notes) as connection:  # noqa: PT012
        connection.execute(text("INSERT INTO notes (body) VALUES ('dropped')"))
        connection.execute(text("CREATE TABLE also_dropped (id INTEGER)"))
        raise ZeroDivisionError

    assert count(pool, notes) == 1
    assert pool.execute_query(notes, "SELECT name FROM sqlite_master WHERE name = 'also_dropped'") == []


async def test_an_asyncio_transaction_does_the_same(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Commit at the end, rollback on failure, with AsyncConnection."""
    async with pool.transaction(notes) as connection:
        await connection.execute(text("INSERT INTO notes (body) VALUES ('kept')"))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with pool.transaction(notes) as connection:
            await connection.execute(text("INSERT INTO notes (body) VALUES ('dropped')"))
            raise ZeroDivisionError

    found = await pool.execute_query_async(notes, "SELECT body FROM notes")

    assert found == [("kept",)]
    await pool.stop_async()


def test_a_savepoint_rolls_back_alone(pool: SQLPool, notes: DatabaseConfig) -> None:
    """A nested transaction that fails leaves the outer one whole."""
    with pool.transaction(notes) as connection:
        connection.execute(text("INSERT INTO notes (body) VALUES ('outer')"))
        nested = connection.begin_nested()
        connection.execute(text("INSERT INTO notes (body) VALUES ('inner')"))
        nested.rollback()

    assert pool.execute_query(notes, "SELECT body FROM notes") == [("outer",)]


def test_a_savepoint_of_a_reader_keeps_no_writer_out(pool: SQLPool, tmp_path: object) -> None:
    """A nested transaction is the writer once it writes, not before."""
    config = get_sqlite_config(f"{tmp_path}/wal.db", busy_timeout=0.5)
    pool.execute_query(config, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)")
    with pool.connection(config) as connection:
        with connection.begin_nested():
            assert connection.execute(text("SELECT count(*) FROM notes")).scalar() == 0
        pool.execute_query(config, "INSERT INTO notes (body) VALUES ('meanwhile')")
        connection.rollback()
        with connection.begin_nested():
            connection.execute(text("INSERT INTO notes (body) VALUES ('nested')"))
        connection.commit()
    assert count(pool, config) == 2


def test_a_session_stores_objects(pool: SQLPool, notes: DatabaseConfig) -> None:
    """The ORM works on a leased session, and its objects stay readable after the block."""
    with pool.session(notes) as session:
        note = Note(body="by the ORM")
        session.add(note)
        session.commit()

    assert (note.id, note.body) == (1, "by the ORM")
    assert count(pool, notes) == 1


async def test_an_asyncio_session_stores_objects(pool: SQLPool, notes: DatabaseConfig) -> None:
    """AsyncSession works too, and the synchronous side sees what it stored."""
    async with pool.session(notes) as session:
        session.add(Note(body="by the ORM"))
        await session.commit()

    assert count(pool, notes) == 1
    await pool.stop_async()


def test_a_foreign_key_is_enforced(pool: SQLPool, notes: DatabaseConfig) -> None:
    """SQLite's default of ignoring foreign keys is off."""
    pool.execute_query(notes, "CREATE TABLE tags (note INTEGER REFERENCES notes(id))")

    with pool.connection(notes) as connection, pytest.raises(IntegrityError):
        connection.execute(text("INSERT INTO tags VALUES (99)"))


def test_readers_see_the_last_commit_while_a_writer_works(pool: SQLPool, tmp_path: object) -> None:
    """In a file, which has a write-ahead log, an open write transaction does not block reading."""
    config = get_sqlite_config(f"{tmp_path}/wal.db")
    pool.execute_query(config, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)")
    with pool.transaction(config) as connection:
        connection.execute(text("INSERT INTO notes (body) VALUES ('later')"))

        assert count(pool, config) == 0
    assert count(pool, config) == 1


def test_a_snapshot_that_others_outdated_cannot_overwrite_them(pool: SQLPool, tmp_path: object) -> None:
    """A connection that has read before another's commit gets an error that says so instead of losing an update."""
    config = get_sqlite_config(f"{tmp_path}/wal.db")
    pool.execute_query(config, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)")
    with pool.connection(config) as connection:
        connection.execute(text("SELECT * FROM notes")).all()
        pool.execute_query(config, "INSERT INTO notes (body) VALUES ('first')")

        with pytest.raises(OperationalError, match="read before another one wrote"):
            connection.execute(text("INSERT INTO notes (body) VALUES ('second')"))


def test_threads_that_read_modify_and_write_lose_nothing(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Eight threads that each add to one number all arrive."""
    pool.execute_query(notes, "INSERT INTO notes (id, body) VALUES (1, '0')")

    def add(_: int) -> None:
        with pool.transaction(notes) as connection:
            value = int(connection.execute(text("SELECT body FROM notes")).scalar_one())
            connection.execute(text("UPDATE notes SET body = :body"), {"body": str(value + 1)})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(80)))

    assert pool.execute_query(notes, "SELECT body FROM notes") == [("80",)]


def test_the_cap_holds_and_a_timeout_names_the_holder(notes: DatabaseConfig, pool: SQLPool) -> None:
    """A fifth lease on four connections waits, and is told who holds one."""
    leases = [pool.connection(notes) for _ in range(4)]
    for lease in leases:
        lease.__enter__()

    with pytest.raises(PoolTimeout, match=r"4 of 4 in use.*test_sqlite\.py"), pool.connection(notes, timeout=0.05):
        pass
    for lease in leases:
        lease.__exit__(None, None, None)

    assert pool.get_stats()["metrics"]["total_connections"] == 4
    assert active(pool) == 0


def test_fifty_threads_never_open_more_than_the_cap(pool: SQLPool, notes: DatabaseConfig) -> None:
    """The cap is hard, also when all come at once."""
    barrier = threading.Barrier(50)

    def read(_: int) -> int:
        barrier.wait(20)
        return count(pool, notes)

    with ThreadPoolExecutor(50) as threads:
        assert list(threads.map(read, range(50))) == [0] * 50

    assert pool.get_stats()["metrics"]["total_connections"] <= 4


async def test_fifty_tasks_share_the_connections(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Tasks wait for their turn, and all give back what they had."""

    async def write(number: int) -> None:
        async with pool.transaction(notes) as connection:
            await connection.execute(text("INSERT INTO notes (body) VALUES (:n)"), {"n": str(number)})

    await asyncio.gather(*(write(number) for number in range(50)))

    assert count(pool, notes) == 50
    assert active(pool) == 0
    await pool.stop_async()


def test_a_stopped_pool_refuses_and_names_who_still_holds(sqlite: DatabaseConfig) -> None:
    """stop() waits, then names the holder; later calls say that the pool is stopped."""
    pool = SQLPool(SQLPoolSettings())
    lease = pool.connection(sqlite)
    lease.__enter__()

    with pytest.raises(LeaseLeaked, match=r"test_sqlite\.py"):
        pool.stop(timeout=0.05)
    with pytest.raises(PoolClosed):
        pool.execute_query(sqlite, "SELECT 1")
    lease.__exit__(None, None, None)


def test_a_memory_database_is_one_for_the_pool_and_ends_with_it() -> None:
    """Every thread sees the same :memory: database; another pool has another one."""
    config = get_sqlite_config(":memory:")
    with SQLPool() as first, SQLPool() as second:
        first.execute_query(config, "CREATE TABLE notes (body TEXT)")
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(lambda _: count(first, config), range(2))) == [0, 0]
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            count(second, config)


async def test_the_handle_has_the_calls_of_one_database(pool: SQLPool, notes: DatabaseConfig) -> None:
    """Database offers the pool's calls without the config."""
    database = Database(pool, notes)

    assert await database.execute_many_async("INSERT INTO notes (body) VALUES (?)", [("x",)]) == 1
    assert await database.execute_query_async("SELECT body FROM notes") == [("x",)]
    async with database.connection() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM notes"))).scalar() == 1
    with database.session() as session:
        assert [note.body for note in session.query(Note)] == ["x"]
    await pool.stop_async()


def open_files(name: str) -> int:
    """Return how many descriptors this process has of files whose name ends so."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{descriptor}").endswith(name)
    return found


def test_a_stopped_pool_does_not_keep_the_writer_locks_file(tmp_path: Path) -> None:
    """The file of the writer lock is closed at the stop, and opened again by whoever writes later."""
    config = get_sqlite_config(tmp_path / "ended.db")
    pool = SQLPool(SQLPoolSettings(max_connections=2))
    for _ in range(3):
        pool.start()
        pool.execute_query(config, "CREATE TABLE IF NOT EXISTS t (a)")
        assert open_files("ended.db-writer") == 1
        pool.stop()
        assert open_files("ended.db-writer") == open_files("ended.db") == 0


def test_a_writer_lock_that_nobody_has_keeps_no_file(tmp_path: Path) -> None:
    """The file is closed with the lock itself, too, as when a pool is dropped without a stop."""
    lock = writer_lock("a database", str(tmp_path / "dropped.db"))
    lock.release(lock.acquire(Wish(), timeout=10))
    assert open_files("dropped.db-writer") == 1

    del lock
    gc.collect()

    assert open_files("dropped.db-writer") == 0


def test_a_pools_stop_does_not_end_anothers_turn_to_write(tmp_path: Path) -> None:
    """Who writes to the file through another pool keeps other processes from it until the transaction ends."""
    config = get_sqlite_config(tmp_path / "shared.db")
    ask = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def is_free() -> bool:
        command = [sys.executable, "-c", ask, f"{config.database}-writer"]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False, timeout=30).returncode == 0

    with SQLPool(SQLPoolSettings(max_connections=2)) as other, SQLPool(SQLPoolSettings(max_connections=2)) as pool:
        other.execute_query(config, "CREATE TABLE t (a)")
        with pool.transaction(config) as connection:
            other.stop()
            assert not is_free()
            connection.execute(text("INSERT INTO t VALUES (1)"))
        assert is_free()
        pool.execute_query(config, "INSERT INTO t VALUES (2)")
        assert [(1,), (2,)] == pool.execute_query(config, "SELECT a FROM t ORDER BY a")
