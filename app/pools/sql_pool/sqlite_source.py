"""A source of SQLite connections: how a database is opened, and what each connection to it is set to."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.obstacles import name_obstacle
from app.pools.sql_pool.sqlite import Connection, is_busy
from app.pools.sql_pool.sqlite_forks import register
from app.pools.sql_pool.writers import Wish, writer_lock

_CACHED_STATEMENTS = 512
_WAL_RETRY = 0.005


class Source:
    """Where the connections of one SQLite database come from.

    Args:
        config: the database.
        memory_name: tells this pool's ``:memory:`` from that of another pool.
    """

    def __init__(self, config: DatabaseConfig, memory_name: str) -> None:
        self.config = config
        path = None if config.in_memory else config.database
        self.writer = writer_lock(config.label, path)
        if path is None:
            # A shared in-memory database of SQLite's memdb VFS: each connection has a transaction of its own.
            self.uri = f"file:/{quote(memory_name)}?vfs=memdb"
        else:
            self.uri = Path(path).as_uri() + ("?mode=ro" if config.readonly else "")

    @property
    def connect_args(self) -> dict[str, Any]:
        """What ``sqlite3.connect`` takes besides the URI."""
        return {
            "uri": True,
            "timeout": self.config.busy_timeout,
            "isolation_level": None,
            "check_same_thread": False,  # the pool lends a connection to one thread at a time
            "cached_statements": _CACHED_STATEMENTS,
            "factory": self._make,
        }

    def _make(self, *args: Any, **kwargs: Any) -> Connection:
        connection = Connection(*args, **kwargs)
        connection.writer = self.writer
        connection.busy_timeout = self.config.busy_timeout
        connection.wish = Wish()
        connection.name_obstacle = partial(name_obstacle, self.config)
        try:
            if not self.config.in_memory:
                register.opened(connection, self.config.database)
            self._configure(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def connect(self) -> Connection:
        """Open a connection in autocommit mode.

        Raises:
            sqlite3.Error: the file cannot be opened, or is no database.
        """
        try:
            connection: Connection = sqlite3.connect(self.uri, **self.connect_args)
        except sqlite3.OperationalError as error:
            name_obstacle(self.config, error, advise=False)  # who connects waits a shortage out, and is told at the end
            raise
        return connection

    def _configure(self, connection: Connection) -> None:
        config = self.config
        execute = connection.cursor(sqlite3.Cursor).execute
        execute(f"PRAGMA foreign_keys={'ON' if config.foreign_keys else 'OFF'}")
        if config.in_memory:
            return  # nothing is synchronised, and the pragma would wait for who writes
        execute(f"PRAGMA synchronous={config.synchronous}")
        if not config.readonly:
            self._set_journal_mode(execute)

    def _set_journal_mode(self, execute: Callable[[str], sqlite3.Cursor]) -> None:
        """Switch the file to its journal mode, which needs a moment without any other connection's lock."""
        wanted = self.config.journal_mode
        deadline = time.monotonic() + self.config.busy_timeout
        while execute("PRAGMA journal_mode").fetchone()[0].upper() != wanted:
            try:
                got = execute(f"PRAGMA journal_mode={wanted}").fetchall()[0][0].upper()
            except sqlite3.OperationalError as error:
                # SQLite does not wait by itself here: its busy timeout does not cover a change of the journal.
                if not is_busy(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(_WAL_RETRY)
                continue
            if got != wanted:  # and no error: it will stay so, as WAL where there is no shared memory
                raise sqlite3.OperationalError(
                    f"{self.config.label} stays in journal mode {got}: SQLite cannot use {wanted} there"
                )
