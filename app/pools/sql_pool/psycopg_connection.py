"""psycopg's connection, which knows what its statements leave in the session, and its cursors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import psycopg
from psycopg.abc import PQGen

from app.pools.sql_pool.first_statement import execute_with_begin, is_one_query
from app.pools.sql_pool.psycopg_pipeline import CAN_PIPELINE
from app.pools.sql_pool.residue import LASTING, NOTHING, residue_of
from app.pools.sql_pool.statements import admit

_IDLE = psycopg.pq.TransactionStatus.IDLE
# The functions of the server that compare the columns, and that look the type of a value up.
_FINDING_OUT = frozenset({"RevalidateCachedQuery", "getTypeInputInfo", "getTypeBinaryInputInfo"})


class Connection(psycopg.Connection[Any]):
    """A connection that knows what its statements have left in the session."""

    residue = NOTHING

    def may_begin_with(self, query: Any) -> bool:
        """Say whether a statement is to begin a transaction, and may be sent together with the BEGIN."""
        return (
            self.pgconn.transaction_status == _IDLE
            and not self._autocommit
            and self._pipeline is None
            and self.prepare_threshold is not None  # a pooler that cannot prepare may not know pipelines, either
            and CAN_PIPELINE
            and isinstance(query, str)
            and is_one_query(query)
        )

    def note(self, query: Any, judge: Callable[[str], int] = admit) -> None:
        """Take note of a statement that is about to be executed, unless it cannot be, see ``admit``."""
        if not isinstance(query, str):
            query = query.decode(errors="replace") if isinstance(query, bytes) else query.as_string(self)
        residue = judge(query)
        if residue:
            self.residue |= residue


class Cursor(psycopg.Cursor[Any]):
    """A cursor whose statements are taken note of."""

    __slots__ = ()
    _conn: Connection

    # Its arguments one by one: to collect and spread them costs more than the note.

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """Execute one statement."""
        self._conn.note(query)
        try:
            return super().execute(query, params, prepare=prepare, binary=binary)
        except psycopg.Error as error:
            if is_outdated(error):  # and would fail again and again; a rollback has psycopg forget it, nothing else
                self._conn.residue |= LASTING
            raise

    def _execute_gen(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        if self._conn.may_begin_with(query):
            return execute_with_begin(self, query, params, prepare=prepare, binary=binary)
        return super()._execute_gen(query, params, prepare=prepare, binary=binary)

    def executemany(self, query: Any, *args: Any, **options: Any) -> None:
        """Execute one statement for each set of parameters."""
        self._conn.note(query)
        super().executemany(query, *args, **options)

    def stream(self, query: Any, *args: Any, **options: Any) -> Iterator[Any]:
        """Execute one statement, and yield its rows as they come."""
        self._conn.note(query)
        return super().stream(query, *args, **options)

    def copy(self, statement: Any, *args: Any, **options: Any) -> Any:
        """Execute one COPY."""
        self._conn.note(statement, residue_of)
        return super().copy(statement, *args, **options)


class ServerCursor(psycopg.ServerCursor[Any]):
    """A cursor on the server whose statement is taken note of."""

    _conn: Connection

    def execute(self, query: Any, *args: Any, **options: Any) -> Self:
        """Open the cursor on a query."""
        self._conn.note(query)
        return super().execute(query, *args, **options)


def is_outdated(error: psycopg.Error) -> bool:
    """Say whether a statement that was prepared cannot be executed, because of what has changed since.

    Its columns are others (ALTER TABLE), or the type of one of its values is another (DROP TYPE). The server finds it
    out before it executes anything. Its message may be in any language.
    """
    return error.diag.source_function in _FINDING_OUT


def forget_prepared(raw: Connection) -> None:
    """Have a connection prepare its statements anew."""
    raw._prepared.clear()
    raw.wait(raw._prepared.maintain_gen(raw))  # tells the server
