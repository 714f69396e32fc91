"""Executing a statement on psycopg's connection and fetching its rows, as cheaply as that goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import pq
from psycopg._queries import PostgresQuery
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.generators import execute

from app.pools.sql_pool.psycopg_connection import is_outdated
from app.pools.sql_pool.rows import Row, row_class, row_class_of

_FAILED = pq.ExecStatus.FATAL_ERROR
_OF_THE_TEXT = "42"
"""Begins the SQLSTATE of an error of syntax, names or types."""
_MOST_KEPT = 200
"""More than psycopg has prepared on a connection at once."""

Values = Sequence[Any] | None


class Fetcher:
    """Executes single statements on one connection, in autocommit mode.

    A text goes through a cursor until psycopg has prepared it, as it does with what comes often. From then on the
    prepared statement is executed without the cursor, which takes half of a short call's CPU time.

    Args:
        connection: has no other statement under way.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._cursor = psycopg.Cursor(connection, row_factory=rows_of)
        # psycopg's own, which its cursors add to and remove from: by text and types of values, the server's names.
        self._names = connection._prepared._names
        # Of the texts that psycopg has prepared for some types: to convert the others as well would be for nothing.
        self._queries: dict[str, PostgresQuery] = {}
        self._row_classes: dict[bytes, type[Row]] = {}

    def fetch(self, text: str, values: Values) -> list[Row]:
        """Execute a statement and return its rows.

        Args:
            text: the statement, with ``%s`` for each value.
            values: ``None`` if the text is to be taken as it stands.

        Raises:
            psycopg.Error: as ``Cursor.execute`` does.
        """
        names = self._names
        query = self._queries.get(text) if names else None
        if query is not None and (values is None or query.formats is not None):  # too many are the cursor's to refuse
            query.dump(values)
            params, query.params = query.params, None  # nothing is kept of a call, however large, nor of its result
            key = query.query, query.types
            name = names.get(key)
            if name is not None:
                names.move_to_end(key)  # psycopg gives up what was not used for longest
                return self._fetch_prepared(query, name, params)
        return self._fetch_by_cursor(text, values)

    def was_outdated(self, error: psycopg.Error) -> bool:
        """Say whether ``fetch`` has failed only because psycopg had prepared the statement, for another schema.

        Either ``is_outdated`` knows the error, or the server shows a place in the text: the values of a prepared
        statement keep the types that it found for them, whatever types the columns have since. In both cases it has
        executed nothing.
        """
        if self._cursor._query is not None:  # it was not prepared
            return False
        misread = (error.sqlstate or "").startswith(_OF_THE_TEXT) and error.diag.statement_position is not None
        return misread or is_outdated(error)

    def _fetch_prepared(self, query: PostgresQuery, name: bytes, params: Any) -> list[Row]:
        pgconn = self._connection.pgconn
        pgconn.send_query_prepared(name, params, param_formats=query.formats)
        result = self._connection.wait(execute(pgconn))[0]
        if result.status == _FAILED:
            raise error_from_result(result, encoding=self._connection.info.encoding)
        if not result.nfields:
            return []
        transformer = query._tx
        transformer.set_pgresult(result)
        rows: list[Row] = transformer.load_rows(0, result.ntuples, self._row_class(name, result))
        transformer.set_pgresult(None)
        return rows

    def _row_class(self, name: bytes, result: Any) -> type[Row]:
        found = self._row_classes.get(name)
        if found is None:  # which columns a prepared statement has, does not change
            if len(self._row_classes) >= _MOST_KEPT:
                self._row_classes.clear()
            encoding = self._connection.info.encoding
            columns = [result.fname(column).decode(encoding) for column in range(result.nfields)]
            found = self._row_classes[name] = row_class(tuple(columns))
        return found

    def _fetch_by_cursor(self, text: str, values: Values) -> list[Row]:
        cursor = self._cursor
        cursor.execute(text, values)
        if cursor._query is None and text not in self._queries:  # psycopg notes there what it has not prepared
            self._keep(text, values)
        result = cursor.pgresult
        if result is None:
            return []
        # Not cursor.description, which makes an object for each column.
        rows: list[Row] = cursor.fetchall() if result.nfields else []
        # As close() does: the cursor would keep all this, however large, until the connection's next statement.
        cursor.pgresult = cursor._query = None
        cursor._results.clear()
        cursor._tx.set_pgresult(None)
        return rows

    def _keep(self, text: str, values: Values) -> None:
        query = PostgresQuery(Transformer(self._cursor))  # with the cursor's adapters: the connection's may be others
        query.convert(text, values)
        query.params = None
        if len(self._queries) >= _MOST_KEPT:
            self._queries.clear()
        self._queries[text] = query


def rows_of(cursor: Any) -> Callable[[Sequence[Any]], Any]:
    """Return what makes a row of the values that psycopg has loaded."""
    result = cursor.pgresult
    if result is None or not result.nfields:
        return tuple
    # By the bytes that libpq has: to read them would take longer.
    return row_class_of(tuple([result.fname(column) for column in range(result.nfields)]), cursor)
