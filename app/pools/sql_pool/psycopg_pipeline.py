"""Commands that psycopg's connection sends without waiting for the answers to those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import psycopg
from psycopg import OperationalError, capabilities, pq
from psycopg._preparing import Prepare
from psycopg._queries import PostgresQuery
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many, send

CAN_PIPELINE: Final = capabilities.has_pipeline()
"""Whether this libpq can send several commands at once."""

_TEXT = pq.Format.TEXT
_MOST_AT_ONCE = 200
_LARGE = 65536
"""Bytes of values after which no more is sent at once: what the server does not take yet is kept in memory."""

_Validation = tuple[Any, Prepare, bytes] | None
"""What psycopg wants to know the answer to, to keep what it has noted of a statement that it prepares."""


def send_statement(pgconn: Any, query: Any, preparing: Prepare, name: bytes, form: pq.Format = _TEXT) -> None:
    """Send a statement with its values, and before it what prepares it, if it shall be.

    Raises:
        psycopg.OperationalError: there are more values than a statement can have; nothing was sent then.
    """
    if preparing is Prepare.SHOULD:
        pgconn.send_prepare(name, query.query, param_types=query.types)
    if preparing is Prepare.NO:
        pgconn.send_query_params(
            query.query, query.params, param_types=query.types, param_formats=query.formats, result_format=form
        )
    else:
        pgconn.send_query_prepared(name, query.params, param_formats=query.formats, result_format=form)


def read_answer(pgconn: Any) -> PQGen[list[Any]]:
    """Read the answer to one command, or to the end of a pipeline.

    Raises:
        psycopg.OperationalError: the connection is lost.
    """
    results: list[Any] = yield from fetch_many(pgconn)
    if not results:
        raise OperationalError("the server has not answered all that it was sent")
    return results


class Repetition:
    """One statement that is executed for many sets of values, some hundred at once. Its rows are dropped.

    psycopg's ``executemany`` does the same, and asks its socket what it may do for each set anew.

    Args:
        connection: is in a transaction, and has no other statement under way.
        text: the statement, with ``%s`` for each value.
    """

    def __init__(self, connection: psycopg.Connection[Any], text: str) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._text = text
        self._query = PostgresQuery(Transformer(connection))
        self._types: tuple[int, ...] | None = None
        self._name = b""
        self._unanswered: deque[_Validation] = deque()
        self._failure: Exception | None = None

    def execute(self, rows: Iterable[Sequence[Any]]) -> PQGen[None]:
        """Execute the statement for each of ``rows``.

        Raises:
            psycopg.Error: the first that failed, and the transaction with it.
        """
        try:
            self._pgconn.enter_pipeline_mode()
            try:
                yield from self._execute_some_hundreds(iter(rows))
            except Exception as error:  # noqa: BLE001 - raised below, once there is nothing left to be answered
                self._failure = self._failure or error
            yield from self._end()
        except BaseException as error:
            self._pgconn.finish()  # what was not answered yet would be taken for the answer to the next statement
            if self._failure is None or not isinstance(error, psycopg.Error):
                raise
        if self._failure is not None:
            try:
                raise self._failure
            finally:
                self._failure = None  # its traceback leads here: the two would keep the connection for each other
        yield from self._connection._prepared.maintain_gen(self._connection)

    def _execute_some_hundreds(self, rows: Iterator[Sequence[Any]]) -> PQGen[None]:
        """Execute the statement for ``rows``, until it fails; the last answers are left to be read."""
        before = 0
        while self._failure is None and self._queue(rows):
            self._pgconn.send_flush_request()
            yield from send(self._pgconn)
            # The answers to those before are read while the server is at these.
            queued = len(self._unanswered) - before
            for _ in range(before):
                yield from self._read()
            before = queued

    def _queue(self, rows: Iterator[Sequence[Any]]) -> bool:
        """Queue the statement for the next of ``rows``; say whether there are any."""
        size, some = 0, False
        for values in islice(rows, _MOST_AT_ONCE):
            self._queue_one(values)
            some = True
            size += sum([len(value) for value in self._query.params or () if value is not None])
            if size >= _LARGE:
                break
        return some

    def _queue_one(self, values: Sequence[Any]) -> None:
        query, prepared = self._query, self._connection._prepared
        if self._types is None:
            query.convert(self._text, values)
        else:
            query.dump(values)
        if query.types == self._types and self._name:
            self._pgconn.send_query_prepared(self._name, query.params, param_formats=query.formats)
            self._unanswered.append(None)
            return
        preparing, name = prepared.get(query, True)
        send_statement(self._pgconn, query, preparing, name)
        key = prepared.maybe_add_to_cache(query, preparing, name)
        if preparing is Prepare.SHOULD:
            self._unanswered.append(None)
        self._unanswered.append(None if key is None else (key, preparing, name))
        self._types, self._name = query.types, name

    def _read(self) -> PQGen[pq.ExecStatus]:
        """Read an answer, and return what it says."""
        results = yield from read_answer(self._pgconn)
        if self._unanswered and (validation := self._unanswered.popleft()) is not None:
            self._connection._prepared.validate(*validation, results)
        status: pq.ExecStatus = results[0].status
        if status == pq.ExecStatus.FATAL_ERROR and self._failure is None:
            self._failure = error_from_result(results[0], encoding=self._connection.info.encoding)
        return status

    def _end(self) -> PQGen[None]:
        """Read what answers are left."""
        self._pgconn.pipeline_sync()
        yield from send(self._pgconn)
        while (yield from self._read()) != pq.ExecStatus.PIPELINE_SYNC:
            pass
        self._pgconn.exit_pipeline_mode()
