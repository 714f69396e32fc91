"""Blobs of a lease of SQLite: what reads and writes through them is bound to its rules, and ends with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config
from app.pools.sql_pool.sqlite import Connection, StaleSnapshot

COUNT = "SELECT count(*) FROM files"
INSERT = "INSERT INTO files (data) VALUES (zeroblob(8))"


@pytest.fixture
def pair() -> Iterator[SQLPool]:
    """Return a pool with two connections, of which the next borrower gets the one that was used last."""
    with SQLPool(SQLPoolSettings(max_connections=2, min_connections=0, checkout_timeout=20)) as pool:
        yield pool


def fill(pool: SQLPool, config: DatabaseConfig) -> None:
    pool.execute_query(config, "CREATE TABLE files (id INTEGER PRIMARY KEY, data BLOB)")
    pool.execute_query(config, INSERT)


@pytest.fixture
def files(pair: SQLPool, sqlite: DatabaseConfig) -> DatabaseConfig:
    fill(pair, sqlite)
    return sqlite


def raw_of(lease: Any) -> Connection:
    connection = lease.connection() if callable(lease.connection) else lease
    raw: Connection = connection.connection.driver_connection
    return raw


def content(pool: SQLPool, config: DatabaseConfig) -> bytes:
    data: bytes = pool.execute_query(config, "SELECT data FROM files WHERE id = 1")[0].data
    return data


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("way", ["connection", "transaction", "session"])
def test_a_blob_ends_with_its_lease(pair: SQLPool, files: DatabaseConfig, way: str, readonly: bool) -> None:
    """Who keeps it neither reads nor writes any further, and it keeps the next ones from nothing, nor in the past."""
    for turn in range(3):
        with getattr(pair, way)(files) as lease:
            blob = raw_of(lease).blobopen("files", "data", 1, readonly=readonly)
            assert blob.read(8) == bytes(8)

        with pytest.raises(sqlite3.ProgrammingError, match="closed blob"):
            blob.read(1)
        pair.execute_query(files, INSERT)
        with pair.connection(files) as one, pair.connection(files) as other:
            assert one.execute(text(COUNT)).scalar() == other.execute(text(COUNT)).scalar() == turn + 2
        pair.execute_query(files, "CREATE TABLE more (a)")
        pair.execute_query(files, "DROP TABLE more")
    assert pair.get_stats()["pools"][files.label]["discarded"] == 0


@pytest.mark.parametrize("closed", [True, False])
def test_a_transaction_stores_what_its_blob_has_written(pair: SQLPool, files: DatabaseConfig, closed: bool) -> None:
    """Also if the blob is still open at its end, where SQLite would commit nothing."""
    with pair.transaction(files) as lease:
        blob = raw_of(lease).blobopen("files", "data", 1)
        blob.write(b"ab")
        if closed:
            blob.close()

    assert content(pair, files) == b"ab" + bytes(6)


@pytest.mark.parametrize("closed", [True, False])
def test_a_lease_that_does_not_commit_stores_nothing_of_its_blob(
    pair: SQLPool, files: DatabaseConfig, closed: bool
) -> None:
    """A blob that may be written begins a transaction, as a statement that writes does; the driver's commit ends it."""
    with pair.connection(files) as lease:
        blob = raw_of(lease).blobopen("files", "data", 1)
        blob.write(b"ab")
        if closed:
            blob.close()
    assert content(pair, files) == bytes(8)

    with pair.connection(files) as lease:
        blob = raw_of(lease).blobopen("files", "data", 1)
        blob.write(b"ab")
        raw_of(lease).commit()
    assert content(pair, files) == b"ab" + bytes(6)


def test_who_may_write_a_blob_is_the_writer(pair: SQLPool, files: DatabaseConfig) -> None:
    """Others wait for the writer lock until the transaction ends, and are told who has it."""
    with pair.connection(files) as lease, pair.connection(files) as other:
        raw_of(other).busy_timeout = 0.2
        raw_of(lease).blobopen("files", "data", 1).close()
        with pytest.raises(OperationalError, match=r"writer lock of .*held longest: .*test_sqlite_blobs\.py"):
            other.execute(text(INSERT))
        raw_of(lease).rollback()
        other.execute(text(INSERT))


def test_who_only_reads_a_blob_keeps_no_writer_out(pair: SQLPool, files: DatabaseConfig) -> None:
    """A blob opened with readonly=True takes no writer lock; in a readonly transaction there is no other."""
    with pair.transaction(files, readonly=True) as lease:
        raw = raw_of(lease)
        with pytest.raises(sqlite3.OperationalError, match="readonly transaction"):
            raw.blobopen("files", "data", 1)
        with raw.blobopen("files", "data", 1, readonly=True) as blob:
            assert len(blob) == 8
        if not files.in_memory:  # which has no log: readers and writers exclude each other
            pair.execute_query(files, INSERT)


@pytest.mark.parametrize(("table", "row"), [("missing", 1), ("files", 99)])
def test_a_blob_that_is_not_there_keeps_nobody_out(pair: SQLPool, files: DatabaseConfig, table: str, row: int) -> None:
    """Opening it fails as SQLite says it, and the lease's end lets the next one write."""
    for _ in range(2):
        with pair.connection(files) as lease:
            lease.execute(text(COUNT))
            with pytest.raises(sqlite3.OperationalError, match="no such"):
                raw_of(lease).blobopen(table, "data", row)
        pair.execute_query(files, INSERT)


def test_a_blob_of_an_outdated_snapshot_is_not_written(pair: SQLPool, tmp_path: Path) -> None:
    """A transaction that read before another one wrote gets the error that a statement gets, and is no writer."""
    files = get_sqlite_config(tmp_path / "x.db")  # in memory a reader keeps the writers out
    fill(pair, files)
    with pair.connection(files) as lease:
        lease.execute(text(COUNT))
        pair.execute_query(files, INSERT)
        with pytest.raises(StaleSnapshot):
            raw_of(lease).blobopen("files", "data", 1)
        pair.execute_query(files, INSERT)


async def test_a_blob_of_a_tasks_lease_ends_with_it(pair: SQLPool, files: DatabaseConfig) -> None:
    """The same for a lease whose connection has a thread of its own."""
    for _ in range(3):
        async with pair.connection(files) as lease:
            driver: Any = (await lease.get_raw_connection()).driver_connection
            blob = await driver._execute(driver._conn.blobopen, "files", "data", 1)
        async with pair.transaction(files) as lease:
            await lease.execute(text(INSERT))
        with pytest.raises(sqlite3.ProgrammingError, match="closed blob"):
            blob.read(1)
        del driver
    await pair.stop_async()
