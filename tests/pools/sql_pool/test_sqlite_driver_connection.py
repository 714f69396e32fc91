"""The driver's own connection of a lease, used directly."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from app.pools.sql_pool import SQLPool, get_sqlite_config


@pytest.mark.parametrize("method", ["execute", "executemany"])
def test_statements_on_the_driver_connection_are_rolled_back(tmp_path: Path, method: str) -> None:
    """What the driver's connection executes itself is part of the lease's transaction, and goes with it."""
    config = get_sqlite_config(tmp_path / "data.db")
    with SQLPool() as pool:
        pool.execute_query(config, "CREATE TABLE t (x)")
        with pool.connection(config) as lease:
            connection = lease.connection.driver_connection
            assert connection is not None
            getattr(connection, method)("INSERT INTO t VALUES (?)", [(1,)] if method == "executemany" else (1,))
            assert connection.in_transaction
        assert pool.execute_query(config, "SELECT x FROM t") == []


def test_a_closed_connection_holds_no_lock_for_whoever_still_has_its_cursor(tmp_path: Path) -> None:
    """An invalidated connection's transaction is over, although a cursor of it is still somebody's."""
    config = get_sqlite_config(tmp_path / "x.db", busy_timeout=0.5)
    with SQLPool() as pool:
        pool.execute_query(config, "CREATE TABLE notes (body TEXT)")
        with pool.connection(config) as connection:
            cursor = connection.connection.cursor()
            cursor.execute("INSERT INTO notes VALUES ('x') RETURNING body")
            connection.invalidate()
        pool.execute_query(config, "INSERT INTO notes VALUES ('y')")
        assert pool.execute_query(config, "SELECT body FROM notes") == [("y",)]
        del cursor


def test_a_block_of_the_driver_connection_ends_its_turn_as_the_writer(tmp_path: Path) -> None:
    """What `with` on the driver's connection commits or rolls back keeps nobody from writing afterwards."""
    config = get_sqlite_config(tmp_path / "x.db", busy_timeout=0.5)
    with SQLPool() as pool:
        pool.execute_query(config, "CREATE TABLE notes (body TEXT)")
        with pool.connection(config) as lease:
            connection = lease.connection.driver_connection
            assert connection is not None
            with connection:
                connection.execute("INSERT INTO notes VALUES ('kept')")
            pool.execute_query(config, "INSERT INTO notes VALUES ('meanwhile')")
            with suppress(ZeroDivisionError), connection:
                connection.execute("INSERT INTO notes VALUES ('dropped')")
                raise ZeroDivisionError
            pool.execute_query(config, "INSERT INTO notes VALUES ('afterwards')")
        found = pool.execute_query(config, "SELECT body FROM notes ORDER BY rowid")
        assert found == [("kept",), ("meanwhile",), ("afterwards",)]
