"""What the SQL pool promises for SQLite only, in files and in memory."""

import gc
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from app.pools.errors import LeaseLeaked, PoolClosed
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config
from app.pools.sql_pool.writers import Wish, writer_lock
from tests.support.descriptors import open_files


@pytest.fixture
def notes(pool: SQLPool, sqlite: DatabaseConfig) -> DatabaseConfig:
    pool.execute_query(sqlite, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
    return sqlite


def count(pool: SQLPool, config: DatabaseConfig) -> int:
    found: int = pool.execute_query(config, "SELECT count(*) AS found FROM notes")[0].found
    return found


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


def test_a_foreign_key_is_enforced(pool: SQLPool, notes: DatabaseConfig) -> None:
    """SQLite's default of ignoring foreign keys is off, as its pragma says."""
    pool.execute_query(notes, "CREATE TABLE tags (note INTEGER REFERENCES notes(id))")

    assert pool.execute_query(notes, "PRAGMA foreign_keys") == [(1,)]
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


def test_fifty_threads_never_open_more_than_the_cap(pool: SQLPool, notes: DatabaseConfig) -> None:
    """The cap is hard, also when all come at once."""
    barrier = threading.Barrier(50)

    def read(_: int) -> int:
        barrier.wait(20)
        return count(pool, notes)

    with ThreadPoolExecutor(50) as threads:
        assert list(threads.map(read, range(50))) == [0] * 50

    assert pool.get_stats()["metrics"]["total_connections"] <= 4


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
    (tmp_path / "dropped.db").touch()
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
