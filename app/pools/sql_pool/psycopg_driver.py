"""PostgreSQL through psycopg 3, for threads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from operator import attrgetter
from typing import Any, cast

from sqlalchemy import URL, Engine, create_engine

from app.pools.core.bucket import Limits
from app.pools.core.budget import Budget
from app.pools.errors import MissingDriver
from app.pools.sql_pool.certificates import require_client_certificate, root_certificate
from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.lease_pool import LeasePool
from app.pools.sql_pool.probe import Probe
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.residue import NOTHING, RESET, SETTINGS
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.statements import Statement, Style, quoted

try:
    import psycopg

    from app.pools.sql_pool.psycopg_connection import (
        Connection,
        Cursor,
        ServerCursor,
        forget_prepared,
    )
    from app.pools.sql_pool.psycopg_fetch import Fetcher, rows_of
    from app.pools.sql_pool.psycopg_pipeline import CAN_PIPELINE, Repetition
except ImportError as error:
    raise MissingDriver("PostgreSQL needs psycopg: pip install 'poolwire[postgres]'") from error

_CANCEL_SECONDS = 0.4
# libpq reports a failed start without an SQLSTATE; these will not pass by themselves.
_PERMANENT = re.compile(
    r"password authentication failed|no password supplied|database \".*\" does not exist|role \".*\" does not exist"
    r"|no pg_hba.conf entry|is not permitted to log in|SSL was required|certificate|private key"
    r"|permission denied for database",
    re.IGNORECASE,
)
# What a server says, in its own language, begins with a severity, a colon and two spaces; a network's failure does not.
_BY_SERVER = re.compile(r"\S:  \S")
_PASSING = re.compile(
    r"system is (?:starting up|shutting down|in recovery)|not (?:yet )?accepting connections|too many"
    r"|remaining connection slots",
    re.IGNORECASE,
)
# The server ends the session: shutdown, crash of another backend, dropped database, idle timeouts.
_ENDED = re.compile(r"57P0[1-5]|25P0[34]|08...")


class PsycopgDriver:
    """psycopg connections, in autocommit mode.

    Args:
        config: the database.
    """

    style: Style = "format"
    probed = True
    begin: str | None = None
    begin_readonly: str | None = None
    # The one status that is false is IDLE.
    in_transaction = attrgetter("raw.pgconn.transaction_status")
    residue = end_lease = attrgetter("raw.residue")

    def __init__(self, config: DatabaseConfig) -> None:
        self.config = config

    def engine(self, limits: Limits, budget: Budget | None) -> Engine:
        """Make the Engine on a ``LeasePool``."""
        return create_engine(
            # No credentials: they would only be there to be shown.
            URL.create(
                "postgresql+psycopg", host=self.config.host, port=self.config.port, database=self.config.database
            ),
            creator=self.connect,
            poolclass=LeasePool,
            label=self.config.label,
            limits=limits,
            driver=self,
            budget=budget,
        )

    def connect(self) -> psycopg.Connection[Any]:
        """Open a connection. Raises ``psycopg.Error`` and ``ConfigError``."""
        config = self.config
        require_client_certificate(config)
        options: dict[str, Any] = {
            "host": config.host,
            "port": config.port,
            "dbname": config.database,
            "user": config.username,
            "password": None if config.password is None else config.password.get_secret_value(),
            "application_name": config.application_name,
            "connect_timeout": max(1, round(config.connect_timeout)),
            "sslmode": config.sslmode,
            "sslrootcert": root_certificate(config),
            "sslcert": config.sslcert,
            "sslkey": config.sslkey,
        }
        if config.statement_milliseconds is not None:
            options["options"] = f"-c statement_timeout={config.statement_milliseconds}"
        connection = Connection.connect(autocommit=True, **options)
        connection.cursor_factory = Cursor
        connection.server_cursor_factory = ServerCursor
        if not config.prepared:
            connection.prepare_threshold = None
        return connection

    # The pool's part

    def adopt(self, record: Record) -> None:
        """Probe the connection's socket."""
        record.probe = Probe(record.raw.fileno())
        record.probe.keep_alive()
        record.readable = record.probe.readable

    def lend(self, record: Record) -> None:
        """Begin transactions with statements from now on."""
        record.raw.autocommit = False

    def take_back(self, record: Record) -> None:
        """Commit each statement by itself from now on."""
        record.raw.autocommit = True

    def close(self, record: Record) -> None:
        """Close a connection."""
        raw, record.dbapi_connection = record.raw, None
        with suppress(psycopg.Error, OSError):  # it is broken then, and closed all the same
            raw.close()

    def permanent(self, error: Exception) -> bool:
        """Say whether a failure to connect will not pass by itself."""
        original = getattr(error, "orig", None) or error  # SQLAlchemy asks a first connection this and that
        text = str(original)
        if not isinstance(original, psycopg.OperationalError) or _PERMANENT.search(text):
            return True
        if not _BY_SERVER.search(text) or _PASSING.search(text):
            return False
        return refused_for_good(self.config)

    # The side's part

    def fetch(self, record: Record, statement: Statement, params: Sequence[Any]) -> list[Row]:
        """Execute one statement in autocommit mode and return its rows."""
        fetcher: Fetcher | None = record.fetcher
        if fetcher is None:
            fetcher = record.fetcher = Fetcher(record.raw)
        try:
            return fetcher.fetch(statement.text, params or statement.no_values)
        except psycopg.Error as error:
            if not fetcher.was_outdated(error) or self.in_transaction(record):
                raise
        forget_prepared(record.raw)
        return fetcher.fetch(statement.text, params or statement.no_values)

    def execute_many(self, record: Record, statement: Statement, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement for each set of parameters, pipelined, in one transaction."""
        raw: Connection = record.raw
        with raw.transaction(), raw.cursor() as cursor:
            if not statement.placeholders:  # executemany() takes each % for one
                for row in rows:
                    cursor.execute(statement.text, row or statement.no_values)
            elif CAN_PIPELINE:
                raw.wait(Repetition(raw, statement.text).execute(rows))
            else:
                cursor.executemany(statement.text, rows)

    def copy_rows(self, record: Record, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Store many rows by COPY, in one transaction."""
        copy_in = f"COPY {quoted(table)} ({', '.join(map(quoted, columns))}) FROM STDIN"
        with record.raw.cursor() as cursor, cursor.copy(copy_in) as copy:
            for row in rows:
                copy.write_row(row)

    def stream(
        self, record: Record, statement: Statement, params: Sequence[Any], batch: int
    ) -> Generator[list[Row], None, None]:
        """Yield a query's rows in batches, by a cursor on the server if it is one that can be declared."""
        if not statement.is_query:
            yield from _sent_in_batches(record.raw, statement, params, batch)
            return
        with record.raw.transaction(), record.raw.cursor("poolwire_stream", row_factory=rows_of) as cursor:
            cursor.execute(statement.text, params or statement.no_values)
            while rows := cursor.fetchmany(batch):
                yield rows

    def rollback(self, record: Record) -> None:
        """Roll back."""
        record.raw.rollback()

    def reset(self, record: Record) -> bool:
        """Reset the settings; say whether there was nothing else, and it is the server that they were left on."""
        raw: Connection = record.raw
        if raw.residue != SETTINGS or not self.config.prepared:
            return False
        raw.execute(RESET, prepare=False)
        raw.residue = NOTHING
        return True

    def lost(self, record: Record, error: BaseException) -> bool:
        """Say whether an error means that the connection is no more."""
        if record.raw.closed:
            return True
        return isinstance(error, psycopg.Error) and _ENDED.fullmatch(error.sqlstate or "") is not None

    def cancel(self, record: Record) -> None:
        """Ask the server to end the statement."""
        record.raw.cancel_safe(timeout=_CANCEL_SECONDS)

    def forget_cancel(self, record: Record) -> None:
        """Do nothing: a cancel that finds no statement is forgotten by the server."""

    def cut(self, record: Record) -> None:
        """Shut the socket down: whoever reads from it sees its end."""
        if record.probe is not None:
            record.probe.cut()

    def dispose(self) -> None:
        """Do nothing: the bucket has all connections."""


def _sent_in_batches(
    raw: Connection, statement: Statement, params: Sequence[Any], batch: int
) -> Generator[list[Row], None, None]:
    """Yield the rows of a statement for which no cursor can be declared (SHOW, INSERT ... RETURNING), as they come."""
    size = batch if psycopg.capabilities.has_stream_chunked() else 1
    with raw.transaction(), raw.cursor(row_factory=rows_of) as cursor:
        sent = cast(Generator[Any, None, None], cursor.stream(statement.text, params or statement.no_values, size=size))
        with closing(sent) as found:
            while rows := list(islice(found, batch)):
                yield rows


def refused_for_good(config: DatabaseConfig) -> bool:
    """Ask asyncpg, which unlike libpq tells the SQLSTATE, whether a server refuses a login for good.

    For servers that do not speak English; at the price of a second login, instead of one after another.
    """
    try:
        from app.pools.sql_pool.asyncpg_driver import AsyncpgDriver
    except (MissingDriver, OSError):
        return False

    async def ask() -> bool:
        driver = AsyncpgDriver(config)
        try:
            (await driver.connect()).terminate()
        except Exception as error:  # noqa: BLE001 - it is what is asked for
            return driver.permanent(error)
        return False

    def ask_in_loop() -> bool:
        with asyncio.Runner() as runner:
            runner.get_loop()  # if there can be none, no coroutine is left that nobody awaits
            return runner.run(ask())

    with ThreadPoolExecutor(1) as elsewhere:  # the caller's thread may run an event loop
        try:
            return elsewhere.submit(ask_in_loop).result()
        except (RuntimeError, OSError):  # no thread or descriptor is left for it; the next attempt may ask
            return False
