"""How the connections of a SQLite file are set up, and for how long they wait."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.pools.errors import ConnectionRefused
from app.pools.sql_pool import SQLPool, SQLPoolSettings, get_sqlite_config
from app.pools.sql_pool.sqlite_source import Source

NOBODY = 65534
"""The user without rights."""
SYNCHRONOUS = {"OFF": 0, "NORMAL": 1, "FULL": 2, "EXTRA": 3}


@pytest.mark.parametrize("synchronous", SYNCHRONOUS)
@pytest.mark.parametrize("journal_mode", ["WAL", "DELETE", "TRUNCATE", "MEMORY"])
async def test_a_connection_has_the_pragmas_of_its_config(
    pool: SQLPool, tmp_path: Path, journal_mode: str, synchronous: str
) -> None:
    """Each setting is read back from a connection for threads and from one for a task's lease."""
    config = get_sqlite_config(
        tmp_path / "x.db", journal_mode=journal_mode, synchronous=synchronous, foreign_keys=False, busy_timeout=1.5
    )
    expected = {
        "journal_mode": journal_mode.lower(),
        "synchronous": SYNCHRONOUS[synchronous],
        "foreign_keys": 0,
        "busy_timeout": 1500,
    }

    for pragma, value in expected.items():
        assert pool.execute_query(config, f"PRAGMA {pragma}")[0][0] == value
        async with pool.connection(config) as connection:
            assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar() == value
    await pool.stop_async()


@pytest.mark.parametrize(
    ("path", "readonly", "obstacle"),
    [
        ("missing.db", True, "there is no such file, and readonly=True makes none; correct the path"),
        ("missing/x.db", False, "there is no folder .*missing; make it, or correct the path"),
        ("file/x.db", False, "there is no folder .*file; make it, or correct the path"),
        ("folder", False, "it is a folder; name a file in it"),
    ],
)
async def test_a_file_that_cannot_be_opened_says_why(
    pool: SQLPool, tmp_path: Path, path: str, readonly: bool, obstacle: str
) -> None:
    """SQLite has one sentence for all causes; the error names the one that there is, and comes at once."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    config = get_sqlite_config(tmp_path / path, readonly=readonly)

    with pytest.raises(ConnectionRefused, match=f"unable to open database file: {obstacle}"):
        pool.execute_query(config, "SELECT 1")
    with pytest.raises(ConnectionRefused, match=f"unable to open database file: {obstacle}"):
        await pool.execute_query_async(config, "SELECT 1")
    with pytest.raises(ConnectionRefused, match=f"unable to open database file: {obstacle}"):
        async with pool.connection(config):
            pass
    assert not (tmp_path / "missing.db").exists()
    await pool.stop_async()


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Take from a process of root's, for the time of a test, what lets it read every file."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("file", "folder", "missing"),
    [
        (0o000, 0o700, r"read .*x\.db; give it that right$"),
        (0o600, 0o000, r"look into the folders above .*x\.db; give it that right$"),
        (0o400, 0o700, r"write .*x\.db; give it that right, or use readonly=True$"),
        (0o600, 0o500, r"make files in .*; give it that right, or use readonly=True$"),
        (None, 0o500, r"make files in .*; give it that right$"),
    ],
)
@pytest.mark.usefixtures("unprivileged")
def test_a_right_that_is_missing_is_named(file: int | None, folder: int, missing: str, pool: SQLPool) -> None:
    """Whoever may not read or write the file, or its folder, is told which, and what helps."""
    with TemporaryDirectory() as name:
        path = Path(name) / "x.db"
        if file is not None:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("CREATE TABLE numbers (number)")
            path.chmod(file)
        path.parent.chmod(folder)
        try:
            with pytest.raises(
                ConnectionRefused, match=f"cannot be opened: .*: Permission denied: .* may not {missing}"
            ):
                pool.execute_query(get_sqlite_config(path), "SELECT 1")
        finally:
            path.parent.chmod(0o700)


@pytest.mark.usefixtures("unprivileged")
def test_a_write_for_which_a_right_is_missing_names_it(pool: SQLPool) -> None:
    """A file in a folder where no journal can be made is read, and a write says what is missing."""
    with TemporaryDirectory() as name:
        path = Path(name) / "x.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE numbers (number)")
        config = get_sqlite_config(path, journal_mode="DELETE")
        path.parent.chmod(0o500)
        try:
            assert [] == pool.execute_query(config, "SELECT number FROM numbers")
            with pytest.raises(sqlite3.OperationalError, match=f"may not make files in {name}; give it that right"):
                pool.execute_query(config, "INSERT INTO numbers VALUES (1)")
        finally:
            path.parent.chmod(0o700)


def test_the_pragmas_unless_said_otherwise(pool: SQLPool, tmp_path: Path) -> None:
    """A write-ahead log, NORMAL, foreign keys and five seconds for other writers."""
    config = get_sqlite_config(tmp_path / "x.db")
    found = [
        pool.execute_query(config, f"PRAGMA {pragma}")[0][0]
        for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    ]
    assert found == ["wal", 1, 1, 5000]


def test_each_config_waits_for_the_writer_as_long_as_it_says(tmp_path: Path) -> None:
    """The busy_timeout of a second config for the same file counts for the second."""
    patient = get_sqlite_config(tmp_path / "x.db", busy_timeout=20)
    hasty = replace(patient, busy_timeout=0.05)
    with SQLPool() as pool:
        pool.execute_query(patient, "CREATE TABLE notes (body TEXT)")
        with pool.transaction(patient):
            started = time.monotonic()
            with pytest.raises(sqlite3.OperationalError, match=r"within \d+\.\d+ s.*raise busy_timeout"):
                pool.execute_query(hasty, "INSERT INTO notes VALUES ('x')")
            assert time.monotonic() - started < 10


def test_a_readonly_transaction_leaves_the_files_numbers_alone(pool: SQLPool, tmp_path: Path) -> None:
    """PRAGMA user_version = n is a write like any other: refused to readers, rolled back with its transaction."""
    config = get_sqlite_config(tmp_path / "x.db")
    with (
        pytest.raises(OperationalError, match="readonly transaction"),
        pool.transaction(config, readonly=True) as reader,
    ):
        reader.execute(text("PRAGMA user_version = 7"))
    with pool.connection(config) as connection:
        connection.execute(text("PRAGMA main.user_version = 7"))
    assert pool.execute_query(config, "PRAGMA user_version") == [(0,)]

    pool.execute_query(config, "PRAGMA user_version = 7")
    assert pool.execute_query(config, "PRAGMA user_version") == [(7,)]


async def test_new_connections_to_memory_are_made_while_somebody_writes() -> None:
    """A reader that needs a new connection is not refused because another one's transaction is open."""
    config = get_sqlite_config(":memory:", busy_timeout=20)
    with SQLPool(SQLPoolSettings(max_connections=4, checkout_timeout=20)) as pool, ThreadPoolExecutor(1) as other:
        pool.execute_query(config, "CREATE TABLE notes (body TEXT)")
        with pool.transaction(config) as writer:
            writer.execute(text("INSERT INTO notes VALUES ('x')"))
            assert other.submit(pool.execute_query, config, "SELECT 1").result(20) == [(1,)]
            async with pool.connection(config) as connection:
                assert (await connection.execute(text("SELECT 1"))).scalar() == 1
            reading = other.submit(pool.execute_query, config, "SELECT body FROM notes")
        assert reading.result(20) == [("x",)]
        await pool.stop_async()


def test_a_file_that_is_locked_as_it_is_opened_is_opened_later(tmp_path: Path) -> None:
    """Another program's lock in the moment of a connection is waited for, and no reason to refuse it."""
    file = tmp_path / "x.db"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE notes (body TEXT)")
    other.execute("BEGIN EXCLUSIVE")
    config = get_sqlite_config(file, busy_timeout=0.05)
    with SQLPool(SQLPoolSettings(checkout_timeout=20)) as pool:
        threading.Timer(0.3, other.close).start()
        assert pool.execute_query(config, "SELECT body FROM notes") == []


def test_a_file_that_cannot_have_the_journal_mode_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Where SQLite stays in another mode without an error, as without shared memory, opening the file fails at once."""
    source = Source(get_sqlite_config(tmp_path / "test.db"), "unused")
    source.uri += "?vfs=unix-dotfile"

    with pytest.raises(sqlite3.OperationalError, match="stays in journal mode DELETE: SQLite cannot use WAL there"):
        source.connect()
