"""A transaction's first statement on psycopg, sent together with the BEGIN: a transaction takes one round trip less.

psycopg sends the BEGIN by itself, and waits for its answer before it sends the statement, in its pipeline mode as well.
"""

from __future__ import annotations

import re
from typing import Any

from psycopg import Error, InterfaceError, pq
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.generators import send

from app.pools.sql_pool.findings import once_for_each
from app.pools.sql_pool.psycopg_pipeline import read_answer, send_statement

# In a pipeline a text is one statement. What is no query, or has a semicolon, goes the usual way.
_ONE_QUERY = re.compile(r"\s*+(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES|TABLE)\b[^;]*+\Z", re.IGNORECASE)
_FAILED = pq.ExecStatus.FATAL_ERROR


@once_for_each
def is_one_query(sql: str) -> bool:
    """Say whether a text is surely one statement that reads or changes rows."""
    return _ONE_QUERY.match(sql) is not None


def execute_with_begin(
    cursor: Any, query: str, params: Any, *, prepare: bool | None, binary: bool | None
) -> PQGen[None]:
    """Begin a transaction and execute its first statement, which ``Cursor._execute_gen`` does one after the other.

    Raises:
        psycopg.Error: the BEGIN failed, or the statement and the transaction with it.
    """
    if cursor.closed:
        raise InterfaceError("the cursor is closed")
    connection, pgconn = cursor._conn, cursor._pgconn
    cursor._reset()
    cursor._tx = Transformer(cursor)
    bound = cursor._query = cursor._query_cls(cursor._tx)
    bound.convert(query, params)
    prepared = connection._prepared
    preparing, name = prepared.get(bound, prepare)

    try:
        pgconn.enter_pipeline_mode()
        pgconn.send_query_params(connection._get_tx_start_command(), None)
        refusal = _refusal_of(pgconn, bound, preparing, name, cursor.format if binary is None else pq.Format(binary))
        pgconn.pipeline_sync()
        yield from send(pgconn)
        answers = yield from _answers(pgconn)
    except BaseException:
        pgconn.finish()  # what has not been answered yet would be taken for the answer to the next statement
        raise

    for answer in answers[:-1]:  # to the BEGIN, and to what prepares the statement
        if answer.status == _FAILED:
            raise error_from_result(answer, encoding=connection.info.encoding)
    if refusal is not None:
        raise refusal
    key = prepared.maybe_add_to_cache(bound, preparing, name)
    if key is not None:
        prepared.validate(key, preparing, name, answers[-1:])
    cursor._check_results(answers[-1:])
    cursor._set_results(answers[-1:])
    cursor._last_query = query
    yield from prepared.maintain_gen(connection)


def _refusal_of(*statement: Any) -> Error | None:
    """Send a statement, and return why libpq has refused to, if it has: the BEGIN is sent all the same."""
    try:
        send_statement(*statement)
    except Error as refusal:
        return refusal
    return None


def _answers(pgconn: Any) -> PQGen[list[Any]]:
    """Return the answer to each command, the last one perhaps that the server ends the session."""
    answers: list[Any] = []
    while True:
        try:
            results = yield from read_answer(pgconn)
        except Error:
            if not any(answer.status == _FAILED for answer in answers):
                raise
            pgconn.finish()
            return answers
        if results[0].status == pq.ExecStatus.PIPELINE_SYNC:
            pgconn.exit_pipeline_mode()
            return answers
        answers += results
