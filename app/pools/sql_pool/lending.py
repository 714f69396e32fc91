"""What a lease does from its beginning to its end: connections, transactions and sessions, for threads and tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from app.pools.core.holders import CallSite
from app.pools.errors import DatabaseUnavailable
from app.pools.sql_pool.async_side import AsyncSide
from app.pools.sql_pool.connections import reason
from app.pools.sql_pool.lease_pool import requested
from app.pools.sql_pool.sync_side import SyncSide
from app.pools.sql_pool.unfinished import left_unfinished, report_unfinished, session_left_unfinished

# PostgreSQL enforces it; for SQLite the driver's own BEGIN does, and the option means nothing there.
_READONLY: dict[str, Any] = {"postgresql_readonly": True}


@contextmanager
def lend_connection(side: SyncSide, timeout: float | None, site: CallSite) -> Iterator[Connection]:
    """Lend a connection; what it leaves uncommitted is rolled back, and reported if it was a write."""
    with requested(timeout, site):
        connection = side.lending_engine.connect()
    with _translated(side), connection:  # the end of a lease asks the server as well
        yield connection
        if left_unfinished(connection):
            report_unfinished(side.label, site)


@asynccontextmanager
async def lend_connection_async(
    side: AsyncSide, timeout: float | None, site: CallSite
) -> AsyncIterator[AsyncConnection]:
    """Do what ``lend_connection`` does, for a task."""
    with requested(timeout, site):
        connection = await side.lending_engine.connect()
    with _translated(side):
        try:
            yield connection
            if connection.sync_connection is not None and left_unfinished(connection.sync_connection):
                report_unfinished(side.label, site)
        finally:
            # Shielded: a task that is cancelled again here still gives its connection back.
            await asyncio.shield(connection.close())


@contextmanager
def lend_transaction(side: SyncSide, readonly: bool, timeout: float | None, site: CallSite) -> Iterator[Connection]:
    """Lend a connection in a transaction, committed at the end and rolled back by an exception."""
    with lend_connection(side, timeout, site) as connection:
        connection.execution_options(**(_READONLY if readonly else {}))
        with connection.begin():
            begin = _begin(side, readonly)
            if begin is not None:
                connection.exec_driver_sql(begin)
            yield connection


@asynccontextmanager
async def lend_transaction_async(
    side: AsyncSide, readonly: bool, timeout: float | None, site: CallSite
) -> AsyncIterator[AsyncConnection]:
    """Do what ``lend_transaction`` does, for a task."""
    async with lend_connection_async(side, timeout, site) as connection:
        await connection.execution_options(**(_READONLY if readonly else {}))
        async with connection.begin():
            begin = _begin(side, readonly)
            if begin is not None:
                await connection.exec_driver_sql(begin)
            yield connection


@contextmanager
def lend_session(side: SyncSide, timeout: float | None, site: CallSite) -> Iterator[Session]:
    """Lend an ORM session on a connection of its own."""
    with (
        lend_connection(side, timeout, site) as connection,
        Session(connection, expire_on_commit=False) as session,
    ):
        yield session
        if session_left_unfinished(session, connection):  # before its end, which rolls back and forgets
            report_unfinished(side.label, site)


@asynccontextmanager
async def lend_session_async(side: AsyncSide, timeout: float | None, site: CallSite) -> AsyncIterator[AsyncSession]:
    """Do what ``lend_session`` does, for a task."""
    async with (
        lend_connection_async(side, timeout, site) as connection,
        AsyncSession(connection, expire_on_commit=False) as session,
    ):
        yield session
        if connection.sync_connection is not None and session_left_unfinished(
            session.sync_session, connection.sync_connection
        ):
            report_unfinished(side.label, site)


def _begin(side: SyncSide | AsyncSide, readonly: bool) -> str | None:
    return side.driver.begin_readonly if readonly else side.driver.begin


@contextmanager
def _translated(side: SyncSide | AsyncSide) -> Iterator[None]:
    """Turn SQLAlchemy's error for a lost connection into the pool's own."""
    try:
        yield
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        side.bucket.suspect_idle()
        raise DatabaseUnavailable(f"the connection to {side.label} was lost: {reason(error)}") from error
