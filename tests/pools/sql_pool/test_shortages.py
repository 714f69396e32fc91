"""SQLite in a process that has no file descriptor left, or no lock on a file to be had."""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.pools.sql_pool import DatabaseConfig, SQLPool, get_sqlite_config
from tests.support.descriptors import open_files, shortage

INSERT = "INSERT INTO numbers VALUES (1)"


def lease(pool: SQLPool, config: DatabaseConfig) -> None:
    with pool.connection(config) as connection:
        connection.execute(text(INSERT))


def transaction(pool: SQLPool, config: DatabaseConfig) -> None:
    with pool.transaction(config) as connection:
        connection.execute(text(INSERT))


WRITES: dict[str, Callable[[SQLPool, DatabaseConfig], object]] = {
    "execute_query": lambda pool, config: pool.execute_query(config, INSERT),
    "execute_many": lambda pool, config: pool.execute_many(config, "INSERT INTO numbers VALUES (?)", [(1,)]),
    "stream": lambda pool, config: list(pool.stream(config, f"{INSERT} RETURNING number")),
    "connection": lease,
    "transaction": transaction,
}


def made(pool: SQLPool, path: Path, journal_mode: str) -> DatabaseConfig:
    """Return a database to which the pool has an idle connection, but not the right to write."""
    config = get_sqlite_config(path, journal_mode=journal_mode)
    with SQLPool() as other:
        other.execute_query(config, "CREATE TABLE numbers (number INTEGER)")
    pool.execute_query(config, "SELECT number FROM numbers")
    return config


@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_finds_no_descriptor_says_so(pool: SQLPool, tmp_path: Path, write: str) -> None:
    """A connection that cannot open its journal tells what is missing, and how to have more; it is lent again."""
    config = made(pool, tmp_path / "x.db", "DELETE")
    with (
        shortage(),
        pytest.raises((sqlite3.OperationalError, OperationalError), match=r"Too many open files\. Raise the limit"),
    ):
        WRITES[write](pool, config)

    WRITES[write](pool, config)
    assert 1 == pool.get_stats()["metrics"]["total_connections"]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_needs_no_descriptor_works_without_one(pool: SQLPool, tmp_path: Path, write: str) -> None:
    """SQLite's own locks keep the others out while the writer's cannot be opened; the next write has that again."""
    config = made(pool, tmp_path / "x.db", "WAL")
    with shortage():
        WRITES[write](pool, config)
    assert not open_files(f"{config.database}-writer")

    WRITES[write](pool, config)
    assert open_files(f"{config.database}-writer")


@pytest.mark.parametrize("write", WRITES)
def test_a_file_system_without_locks_is_named(
    pool: SQLPool, tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wants to write where no file can be locked gets a database's error with the reason, and keeps nothing."""
    config = made(pool, tmp_path / "x.db", "WAL")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "lockf", refuse)
        with pytest.raises(
            (sqlite3.OperationalError, OperationalError),
            match=r"the writer lock cannot be had: .*No locks available: '.*x\.db-writer'",
        ):
            WRITES[write](pool, config)

    WRITES[write](pool, config)
