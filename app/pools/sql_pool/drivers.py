"""Drivers: what each part of the pool needs of the module that knows a database's own driver."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from app.pools.core.bucket import Limits
from app.pools.core.budget import Budget
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.statements import Statement, Style


class Driver(Protocol):
    """What the pool needs to know about a driver, synchronous or not.

    A raw connection is made for autocommit mode, as ``execute_query`` uses it; an Engine's lease works in
    transactions. It changes its mode when the other kind of lease wants it, and not before: see ``SyncDriver``.
    """

    probed: bool
    """Whether a connection can break while it is idle, and ``adopt`` gives it a probe."""

    @property
    def residue(self) -> Callable[[Record], int]:
        """What says which residue statements have left on a connection, without asking the server."""

    def adopt(self, record: Record) -> None:
        """Take note of a new connection's raw one, and of a probe for it."""

    @property
    def in_transaction(self) -> Callable[[Record], object]:
        """What says, truthy or not, whether a transaction is open, without asking the server."""

    def lend(self, record: Record) -> None:
        """Have a connection begin transactions, for an Engine."""

    @property
    def end_lease(self) -> Callable[[Record], object]:
        """What takes note that an Engine has rolled back and lets go of a connection, without asking the server.

        It says, truthy or not, whether the connection has to be cleaned.
        """

    def close(self, record: Record) -> None:
        """Close a connection, from any thread. Must not raise."""

    def permanent(self, error: Exception) -> bool:
        """Say whether a failure to connect will not pass by itself."""


class SyncDriver(Driver, Protocol):
    """What a side for threads needs of its driver."""

    style: Style
    begin: str | None
    """What begins a writing transaction at once, where the driver does not do so by itself."""
    begin_readonly: str | None

    def engine(self, limits: Limits, budget: Budget | None) -> Engine:
        """Make the Engine on a ``LeasePool``."""

    def rollback(self, record: Record) -> None:
        """Roll back."""

    def take_back(self, record: Record) -> None:
        """Have a connection that an Engine had commit each statement by itself."""

    def reset(self, record: Record) -> bool:
        """Remove the residue from a connection that commits each statement by itself; say whether that was possible."""

    def fetch(self, record: Record, statement: Statement, params: Sequence[Any]) -> list[Row]:
        """Execute one statement in autocommit mode and return its rows."""

    def execute_many(self, record: Record, statement: Statement, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement for each set of parameters, in one transaction."""

    def copy_rows(self, record: Record, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Store many rows, in one transaction, by the fastest way that the database has."""

    def stream(
        self, record: Record, statement: Statement, params: Sequence[Any], batch: int
    ) -> Generator[list[Row], None, None]:
        """Yield a query's rows in batches, as the database finds them."""

    def lost(self, record: Record, error: BaseException) -> bool:
        """Say whether an error means that the connection is no more."""

    def cancel(self, record: Record) -> None:
        """Ask the server to end what the connection does."""

    def forget_cancel(self, record: Record) -> None:
        """Let a connection whose call was cancelled, and has ended, serve the next one."""

    def cut(self, record: Record) -> None:
        """Make what the connection does fail at once."""

    def dispose(self) -> None:
        """Close what is not in the bucket."""


class EngineDriver(Driver, Protocol):
    """What every side for tasks needs of its driver."""

    begin: str | None
    begin_readonly: str | None

    def engine(self, limits: Limits, budget: Budget | None) -> AsyncEngine:
        """Make the AsyncEngine on a ``LeasePool``."""

    async def clean(self, record: Record) -> bool:
        """Roll back if a transaction is open, and remove the residue; say whether that was possible."""


class AsyncDriver(EngineDriver, Protocol):
    """What a side for tasks needs of a driver whose calls are coroutines."""

    style: Style

    async def fetch(self, record: Record, statement: Statement, params: Sequence[Any]) -> list[Row]:
        """Execute one statement in autocommit mode and return its rows."""

    async def execute_many(self, record: Record, statement: Statement, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement for each set of parameters, in one transaction."""

    async def copy_rows(
        self, record: Record, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
    ) -> None:
        """Store many rows, in one transaction, by the fastest way that the database has."""

    def stream(
        self, record: Record, statement: Statement, params: Sequence[Any], batch: int
    ) -> AsyncGenerator[list[Row], None]:
        """Yield a query's rows in batches, as the database finds them; closed early, leave its transaction open."""

    def awaited(self, record: Record) -> bool:
        """Say whether the server has yet to answer something that its caller has given up."""

    def lost(self, record: Record, error: BaseException) -> bool:
        """Say whether an error means that the connection is no more."""
