"""What a lease does from its beginning to its end: connections, transactions and sessions, for threads and tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from app.pools.core.holders import CallSite
from app.pools.errors import DatabaseUnavailable
from app.pools.sql_pool.async_side import AsyncSide
from app.pools.sql_pool.cleaning import limited, limited_async
from app.pools.sql_pool.failures import reason
from app.pools.sql_pool.lease_pool import LeasePool, requested
from app.pools.sql_pool.sync_side import SyncSide
from app.pools.sql_pool.unfinished import left_unfinished, record_of, report_unfinished, session_left_unfinished

# PostgreSQL enforces it; for SQLite the driver's own BEGIN does, and the option means nothing there.
_READONLY: dict[str, Any] = {"postgresql_readonly": True}


@contextmanager
def lend_connection(side: SyncSide, timeout: float | None, site: CallSite) -> Iterator[Connection]:
    """Lend a connection; what it leaves uncommitted is rolled back, and reported if it was a write."""
    with requested(timeout, site):
        connection = side.lending_engine.connect()
    with _translated(side):  # the end of a lease asks the server as well
        try:
            yield connection
            if left_unfinished(connection, side.driver):
                report_unfinished(side.label, site)
        finally:
            try:
                with _limited(side, connection):
                    connection.close()
            except BaseException:  # perhaps an interrupt, before it was closed
                if not (connection.closed or connection.invalidated):
                    connection.invalidate()  # it and its transaction know each other until the garbage collector looks
                raise


@asynccontextmanager
async def lend_connection_async(
    side: AsyncSide, timeout: float | None, site: CallSite
) -> AsyncIterator[AsyncConnection]:
    """Do what ``lend_connection`` does, for a task."""
    async with _lend_async(side, timeout, site) as (connection, _):
        yield connection
        if connection.sync_connection is not None and left_unfinished(connection.sync_connection, side.driver):
            report_unfinished(side.label, site)


@contextmanager
def lend_transaction(side: SyncSide, readonly: bool, timeout: float | None, site: CallSite) -> Iterator[Connection]:
    """Lend a connection in a transaction, committed at the end and rolled back by an exception."""
    with lend_connection(side, timeout, site) as connection:
        connection.execution_options(**(_READONLY if readonly else {}))
        transaction = ExitStack()
        transaction.enter_context(connection.begin())
        begin = _begin(side, readonly)
        if begin is not None:
            connection.exec_driver_sql(begin)
        yield connection
        transaction.close()  # commits; a rollback is left to the end of the lease, which has a deadline


@asynccontextmanager
async def lend_transaction_async(
    side: AsyncSide, readonly: bool, timeout: float | None, site: CallSite
) -> AsyncIterator[AsyncConnection]:
    """Do what ``lend_transaction`` does, for a task."""
    async with _lend_async(side, timeout, site) as (connection, _):
        await connection.execution_options(**(_READONLY if readonly else {}))
        transaction = AsyncExitStack()
        await transaction.enter_async_context(connection.begin())
        begin = _begin(side, readonly)
        if begin is not None:
            await connection.exec_driver_sql(begin)
        yield connection
        await transaction.aclose()  # commits, as above


@contextmanager
def lend_session(side: SyncSide, timeout: float | None, site: CallSite) -> Iterator[Session]:
    """Lend an ORM session on a connection of its own."""
    with lend_connection(side, timeout, site) as connection:
        session = Session(connection, expire_on_commit=False)
        try:
            yield session
            # Before its end, which rolls back and forgets.
            if session_left_unfinished(session, connection, side.driver):
                report_unfinished(side.label, site)
        finally:
            with _limited(side, connection):
                session.close()


@asynccontextmanager
async def lend_session_async(side: AsyncSide, timeout: float | None, site: CallSite) -> AsyncIterator[AsyncSession]:
    """Do what ``lend_session`` does, for a task."""
    async with _lend_async(side, timeout, site) as (connection, ending):
        session = AsyncSession(connection, expire_on_commit=False)
        ending.push_async_callback(session.close)
        yield session
        if connection.sync_connection is not None and session_left_unfinished(
            session.sync_session, connection.sync_connection, side.driver
        ):
            report_unfinished(side.label, site)


@asynccontextmanager
async def _lend_async(
    side: AsyncSide, timeout: float | None, site: CallSite
) -> AsyncIterator[tuple[AsyncConnection, AsyncExitStack]]:
    """Lend a connection together with what is done at the end of the lease, to which its borrower may add."""
    with requested(timeout, site):
        connection = await side.lending_engine.connect()
    ending = AsyncExitStack()
    ending.push_async_callback(connection.close)
    cancelled = False
    with _translated(side):
        try:
            yield connection, ending
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            # A cancellation stays one, whatever the end of the lease says.
            with suppress(*(DBAPIError,) if cancelled else ()):
                # Shielded: a task that is cancelled again here still gives its connection back.
                await asyncio.shield(_end(connection, ending))


async def _end(connection: AsyncConnection, ending: AsyncExitStack) -> None:
    record = None if connection.sync_connection is None else record_of(connection.sync_connection)
    with nullcontext() if record is None else limited_async(record):
        await ending.aclose()


def _limited(side: SyncSide, connection: Connection) -> AbstractContextManager[object]:
    """Have a connection that has to roll back fail unless a block with the end of its lease ends in time."""
    record = record_of(connection)
    if record is None or record.probe is None or not side.driver.in_transaction(record):
        return nullcontext()
    return limited(record)


def _begin(side: SyncSide | AsyncSide, readonly: bool) -> str | None:
    return side.driver.begin_readonly if readonly else side.driver.begin


@contextmanager
def _translated(side: SyncSide | AsyncSide) -> Iterator[None]:
    """Turn SQLAlchemy's error for a lost connection into the pool's own, if it is not another database's."""
    pool = side.lending_engine.pool
    assert isinstance(pool, LeasePool)
    try:
        yield
    except DBAPIError as error:
        if not pool.has_lost_by(error):
            raise
        side.bucket.suspect_idle()
        raise DatabaseUnavailable(f"the connection to {side.label} was lost: {reason(error)}") from error
