"""asyncpg's connection, which knows what its statements leave in the session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from app.pools.sql_pool.residue import NOTHING, residue_of
from app.pools.sql_pool.statements import admit
from app.pools.sql_pool.unhurried import Unhurried


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that knows what its statements have left in the session."""

    residue = NOTHING

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        """Execute one statement, or several."""
        self._note(query)
        status: str = await super().execute(query, *args, **options)
        return status

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        """Execute one statement and return its rows."""
        self._note(query)
        return await super().fetch(query, *args, **options)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        """Execute one statement and return its first row."""
        self._note(query)
        return await super().fetchrow(query, *args, **options)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        """Execute one statement and return a value of its first row."""
        self._note(query)
        return await super().fetchval(query, *args, **options)

    async def fetchmany(self, query: str, *args: Any, **options: Any) -> Any:
        """Execute one statement for each set of parameters and return the rows of all."""
        self._note(query)
        return await super().fetchmany(query, *args, **options)

    def cursor(self, query: str, *args: Any, **options: Any) -> Any:
        """Return a cursor on the rows of a statement."""
        self._note(query)
        return super().cursor(query, *args, **options)

    async def executemany(self, command: str, *args: Any, **options: Any) -> Any:
        """Execute one statement for each set of parameters."""
        self._note(command)
        return await super().executemany(command, *args, **options)

    async def prepare(self, query: str, **options: Any) -> Any:
        """Prepare a statement."""
        self._note(query)
        return await super().prepare(query, **options)

    def _cancel_current_command(self, *waiters: Any) -> None:
        self._cancellations.add(Unhurried(self._cancel(*waiters), self._loop))

    def _note(self, query: str) -> None:
        residue = admit(query)
        if residue:
            self.residue |= residue


@asynccontextmanager
async def transaction(raw: Connection) -> AsyncIterator[None]:
    """Have a transaction around a block; one that is cancelled, or closed, leaves it open.

    Not asyncpg's own ``transaction()``: cancelled, it would await a server that may never answer, and once its BEGIN
    was cancelled, every later one on that connection would take itself for a savepoint in it.
    """
    await raw.execute("BEGIN")
    try:
        yield
    except Exception:
        if raw.is_in_transaction() and not raw.is_closed():
            await raw.execute("ROLLBACK")
        raise
    await raw.execute("COMMIT")


def forget_prepared(adapted: Any) -> None:
    """Have SQLAlchemy prepare anew whatever text leaves something in its session."""
    prepared = adapted._prepared_statement_cache
    for text in [text for text in prepared if residue_of(text)]:
        del prepared[text]


def close_without_loop(raw: Connection) -> None:
    """Close a connection whose transport could only schedule that, on an event loop that is closed."""
    transport = raw._transport
    inner = getattr(transport, "_ssl_protocol", None)
    transport = getattr(inner, "_transport", None) or transport
    bare = getattr(transport, "_sock", None)
    if bare is not None:  # uvloop's transports have none: such a loop closes its sockets with itself
        with suppress(RuntimeError):  # marks it as lost, so that it writes no more, then finds the loop closed
            transport.abort()
        transport._sock = None
        bare.close()
    with suppress(RuntimeError, AttributeError):  # marks it as closed, then finds the loop closed or the socket gone
        raw.terminate()
