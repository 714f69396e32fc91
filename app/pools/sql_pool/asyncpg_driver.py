"""PostgreSQL through asyncpg, for the tasks of one event loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.pools.core.bucket import Limits
from app.pools.core.budget import Budget
from app.pools.errors import ConfigError, MissingDriver
from app.pools.sql_pool.certificates import asyncpg_dsn, asyncpg_ssl
from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.lease_pool import LeasePool
from app.pools.sql_pool.probe import Probe
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.residue import NOTHING, RESET, SETTINGS
from app.pools.sql_pool.rows import Row, row_class
from app.pools.sql_pool.statements import Statement, Style
from app.pools.sql_pool.unhurried import Unhurried, end_soon

try:
    import asyncpg

    from app.pools.sql_pool.asyncpg_connection import Connection, close_without_loop, forget_prepared, transaction
except ImportError as error:
    raise MissingDriver("PostgreSQL with asyncio needs asyncpg: pip install 'poolwire[postgres]'") from error

# Wrong password, unknown role, unknown database, no right to connect.
_PERMANENT_STATES = frozenset({"28P01", "28000", "3D000", "42501"})
_ENDED_STATES = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"})

_fetch = asyncpg.Connection.fetch
"""For the pool's own calls, whose texts are noted when they are prepared."""


class AsyncpgDriver:
    """asyncpg connections.

    Args:
        config: the database.
    """

    style: Style = "numeric"
    probed = True
    begin: str | None = None
    begin_readonly: str | None = None
    residue = attrgetter("raw.residue")

    def __init__(self, config: DatabaseConfig) -> None:
        self.config = config

    def engine(self, limits: Limits, budget: Budget | None) -> AsyncEngine:
        """Make the AsyncEngine on a ``LeasePool``."""
        config = self.config
        return create_async_engine(
            URL.create("postgresql+asyncpg", host=config.host, port=config.port, database=config.database),
            async_creator=self.connect,
            poolclass=LeasePool,
            label=f"{config.label} (async)",
            limits=limits,
            driver=self,
            budget=budget,
        )

    async def connect(self) -> Any:
        """Open a connection. Raises asyncpg's errors, ``OSError`` and ``TimeoutError``."""
        config = self.config
        server_settings = {"application_name": config.application_name}
        if config.statement_milliseconds is not None:
            server_settings["statement_timeout"] = str(config.statement_milliseconds)
        options: dict[str, Any] = {} if config.prepared else {"statement_cache_size": 0}
        connecting = asyncpg.connect(
            dsn=asyncpg_dsn(config),
            host=config.host,
            port=config.port,
            user=config.username,
            password=None if config.password is None else config.password.get_secret_value(),
            database=config.database,
            timeout=None,
            ssl=asyncpg_ssl(config),
            server_settings=server_settings,
            connection_class=Connection,
            **options,
        )
        attempt = Unhurried(connecting, asyncio.get_running_loop())
        try:
            done, _ = await asyncio.wait({attempt}, timeout=config.connect_timeout)
            if not done:
                attempt.end()
                raise TimeoutError(f"the server did not answer within {config.connect_timeout:g} s")
        except BaseException:
            attempt.add_done_callback(_drop)
            raise
        return attempt.result()

    # The pool's part

    def adopt(self, record: Record) -> None:
        """Probe the connection's socket."""
        record.probe = Probe(record.raw._transport.get_extra_info("socket").fileno())
        record.probe.keep_alive()
        is_closed, has_said_something = record.raw.is_closed, record.probe.readable
        # A socket that the event loop has closed says nothing any more.
        record.readable = lambda: is_closed() or has_said_something()

    def lend(self, record: Record) -> None:
        """Do nothing: SQLAlchemy begins transactions by itself."""

    def end_lease(self, record: Record) -> object:
        """Say, truthy or not, whether statements left something, or a transaction that SQLAlchemy did not begin."""
        raw: Connection = record.raw
        return raw.residue or raw.is_in_transaction() or raw._top_xact

    def close(self, record: Record) -> None:
        """Close a connection from any thread, also when its event loop is closed."""
        raw, record.dbapi_connection = record.raw, None
        loop = raw._loop
        if raw.is_closed():
            return
        if loop.is_closed():
            close_without_loop(raw)
        elif loop is _running_loop():
            raw.terminate()
        else:
            if record.probe is not None:
                record.probe.cut()  # the loop may stand still for long, and the place is another's from now on
            try:
                loop.call_soon_threadsafe(raw.terminate)
            except RuntimeError:  # it was closed meanwhile
                close_without_loop(raw)

    def permanent(self, error: Exception) -> bool:
        """Say whether a failure to connect will not pass by itself."""
        original = getattr(error, "orig", None) or error
        cause = getattr(original, "__cause__", None) or original
        if isinstance(cause, asyncpg.PostgresError):
            return cause.sqlstate in _PERMANENT_STATES
        if isinstance(cause, ssl.SSLError) and "certificate" in str(cause).lower():
            return True
        if isinstance(original, ConfigError) or "rejected SSL upgrade" in str(cause):
            return True
        return not isinstance(cause, OSError | TimeoutError | asyncpg.InterfaceError | asyncpg.InternalClientError)

    # The side's part

    async def fetch(self, record: Record, statement: Statement, params: Sequence[Any]) -> list[Row]:
        """Execute one statement in autocommit mode and return its rows."""
        return rows_of(await _fetch(record.raw, statement.text, *params))

    async def execute_many(self, record: Record, statement: Statement, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement for each set of parameters, pipelined, in one transaction."""
        async with transaction(record.raw):
            await record.raw.executemany(statement.text, rows)

    async def copy_rows(
        self, record: Record, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
    ) -> None:
        """Store many rows by COPY, in one transaction."""
        schema, _, name = table.rpartition(".")
        await record.raw.copy_records_to_table(name, records=rows, columns=columns, schema_name=schema or None)

    async def stream(
        self, record: Record, statement: Statement, params: Sequence[Any], batch: int
    ) -> AsyncGenerator[list[Row], None]:
        """Yield a query's rows in batches, by a cursor on the server."""
        raw = record.raw
        async with transaction(raw):
            try:
                cursor = await raw.cursor(statement.text, *params)
            except asyncpg.InvalidCachedStatementError:  # a migration has changed its columns; nothing was executed
                await raw.execute("ROLLBACK")
                await raw.reload_schema_state()
                await raw.execute("BEGIN")
                cursor = await raw.cursor(statement.text, *params)
            try:
                while records := await cursor.fetch(batch):
                    yield rows_of(records)
            except asyncpg.OutdatedSchemaCacheError:
                await raw.reload_schema_state()
                raise

    def in_transaction(self, record: Record) -> bool:
        """Say whether a transaction is open, without asking the server."""
        answer: bool = record.raw.is_in_transaction()
        return answer

    def awaited(self, record: Record) -> bool:
        """Say whether the server's answer to a cancelled statement is still to come."""
        return bool(record.raw._cancellations)

    async def clean(self, record: Record) -> bool:
        """Roll back and reset the settings; say whether there was nothing else left.

        First the server's answer to a cancelled statement is awaited.
        """
        raw: Connection = record.raw
        earlier = set(raw._cancellations)
        try:
            return await self._clean(record)
        except asyncio.CancelledError:
            # asyncpg makes a request of that. An event loop that ends waits only for the tasks that it has cancelled.
            await end_soon(raw._cancellations - earlier)
            raise

    async def _clean(self, record: Record) -> bool:
        raw: Connection = record.raw
        with suppress(asyncpg.InFailedSQLTransactionError):
            await raw.execute("SELECT 1")
        if raw.is_in_transaction():
            await raw.execute("ROLLBACK")
        raw._top_xact = None  # where it stays, every later transaction takes itself for a savepoint
        if not raw.residue:
            return True
        if raw.residue != SETTINGS or not self.config.prepared:
            return False
        await raw.execute(RESET)
        raw.residue = NOTHING
        # SQLAlchemy prepares a text once, which is when note is taken of it: what was removed may be left again.
        forget_prepared(record.dbapi_connection)
        return True

    def lost(self, record: Record, error: BaseException) -> bool:
        """Say whether an error means that the connection is no more."""
        if record.raw.is_closed() or isinstance(error, OSError):
            return True
        return getattr(error, "sqlstate", None) in _ENDED_STATES


def _drop(attempt: asyncio.Task[Any]) -> None:
    """Close a connection that nobody waits for any more."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


def rows_of(records: Sequence[Any]) -> list[Row]:
    """Return asyncpg's records as rows."""
    if not records:
        return []
    return list(map(row_class(tuple(records[0].keys())), records))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
