"""A transaction's first statement on psycopg, which is sent together with the BEGIN."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg._preparing import Prepare, PrepareManager
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import Session

from app.pools.errors import DatabaseUnavailable
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, first_statement
from app.pools.sql_pool.embedded import EmbeddedPostgres
from app.pools.sql_pool.first_statement import is_one_query
from app.pools.sql_pool.psycopg_pipeline import CAN_PIPELINE
from tests.support.chaos import Proxy
from tests.support.interrupts import break_off, interrupt
from tests.support.postgres import error_of_ended


class Turns(Proxy):
    """Counts how often a client has spoken after the server."""

    turns = 0
    _client: asyncio.StreamReader | None = None
    _last: asyncio.StreamReader | None = None

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client = self._client or reader
        await super()._pump(_Listening(self, reader), writer)  # type: ignore[arg-type]

    def note(self, speaker: asyncio.StreamReader) -> None:
        self.turns += speaker is self._client is not self._last
        self._last = speaker


class _Listening:
    def __init__(self, turns: Turns, reader: asyncio.StreamReader) -> None:
        self._turns = turns
        self._reader = reader

    async def read(self, size: int) -> bytes:
        data = await self._reader.read(size)
        self._turns.note(self._reader)
        return data


@pytest.fixture
def turns(postgres: DatabaseConfig) -> Iterator[Turns]:
    with Turns(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def single(postgres: DatabaseConfig) -> Iterator[SQLPool]:
    with SQLPool(SQLPoolSettings(max_connections=1, checkout_timeout=20)) as pool:
        yield pool


def backend(connection: Connection) -> int:
    """Return which of the server's processes a connection has."""
    raw: Any = connection.connection.driver_connection
    number: int = raw.info.backend_pid
    return number


def ask(pool: SQLPool, config: DatabaseConfig, kind: str) -> object:
    """Execute one statement in a transaction of each kind."""
    if kind == "connection":
        with pool.connection(config) as connection:
            return connection.execute(text("SELECT 7")).scalar()
    if kind == "transaction":
        with pool.transaction(config) as connection:
            return connection.execute(text("SELECT CAST(:n AS int)"), {"n": 7}).scalar()
    if kind == "snapshot":
        with pool.transaction(config, readonly=True) as connection:
            return connection.execute(text("SELECT 7")).scalar()
    with Session(pool.engine(config)) as session:
        return session.execute(text("SELECT CAST(:n AS int)"), {"n": 7}).scalar()


@pytest.mark.skipif(not CAN_PIPELINE, reason="this libpq cannot send several commands at once")
@pytest.mark.parametrize("kind", ["connection", "transaction", "snapshot", "session"])
@pytest.mark.parametrize(("prepared", "wanted"), [(True, 2), (False, 3)])
def test_a_transaction_of_one_statement_takes_two_round_trips(
    single: SQLPool, postgres: DatabaseConfig, turns: Turns, kind: str, prepared: bool, wanted: int
) -> None:
    """One for BEGIN and the statement, one for the end; behind a pooler, which may not know pipelines, three."""
    config = replace(postgres, port=turns.port, sslmode="disable", prepared=prepared)
    single.execute_query(config, "SELECT 1")
    ask(single, config, kind)  # an engine's first use asks the server this and that
    before = turns.turns
    for _ in range(3):
        assert ask(single, config, kind) == 7
    assert turns.turns - before == 3 * wanted


def test_the_transaction_is_the_one_that_was_asked_for(single: SQLPool, postgres: DatabaseConfig) -> None:
    """The isolation level and READ ONLY hold from the first statement on."""
    levels = text("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')")
    with single.connection(postgres) as connection:
        connection.execution_options(isolation_level="SERIALIZABLE", postgresql_readonly=True)
        assert connection.execute(levels).one() == ("serializable", "on")
    with single.transaction(postgres) as connection:
        assert connection.execute(levels).one() == ("read committed", "off")
    single.execute_query(postgres, "CREATE TABLE kept (n int)")
    with pytest.raises(DBAPIError, match="read-only"), single.transaction(postgres, readonly=True) as connection:
        connection.execute(text("INSERT INTO kept VALUES (1)"))
    with single.connection(postgres) as connection:
        assert connection.execute(text("INSERT INTO kept VALUES (2)")).rowcount == 1  # and is rolled back
    with single.transaction(postgres) as connection:
        assert connection.execute(text("INSERT INTO kept VALUES (3) RETURNING n")).all() == [(3,)]
    assert single.execute_query(postgres, "SELECT n FROM kept") == [(3,)]


WRONG = {
    "SELECT frm": (),
    "SELECT 1 / (%s - 7)": (7,),
    "SELECT 1 WHERE 1 IN (" + ", ".join(["%s"] * 70_000) + ")": (1,) * 70_000,
    "SELECT %s": (1, 2),
    "SELECT %s::text": ("a\0b",),
}


@pytest.mark.parametrize("sql", WRONG, ids=["syntax", "division", "too many values", "one value too many", "NUL"])
@pytest.mark.parametrize("prepare", [None, True])
def test_a_first_statement_that_fails_costs_no_connection(
    single: SQLPool, postgres: DatabaseConfig, sql: str, prepare: bool | None
) -> None:
    """It raises the driver's error, as any statement does, and the connection goes on after a rollback."""
    with single.engine(postgres).connect() as connection:
        before = backend(connection)
        raw: Any = connection.connection.driver_connection
        for _ in range(2):
            with pytest.raises(psycopg.Error):
                raw.execute(sql, WRONG[sql], prepare=prepare)
            raw.rollback()
            assert connection.execute(text("SELECT 7")).scalar() == 7
            connection.rollback()
    with single.engine(postgres).connect() as connection:
        assert backend(connection) == before


def test_a_transaction_that_cannot_begin_says_so(single: SQLPool, postgres: DatabaseConfig) -> None:
    """The error is that of the BEGIN, not of the statement that was not executed because of it."""
    with single.engine(postgres).connect() as connection:
        raw: Any = connection.connection.driver_connection
        raw._begin_statement = b"BEGIN OTHERWISE"  # a server that refuses its own syntax cannot be had
        with pytest.raises(ProgrammingError, match="OTHERWISE"):
            connection.execute(text("SELECT 7"))
        raw._begin_statement = b""
        connection.rollback()
        assert connection.execute(text("SELECT 7")).scalar() == 7


def test_what_is_no_single_query_begins_as_ever(single: SQLPool, postgres: DatabaseConfig) -> None:
    """A text of two statements executes both, a SET steers the transaction, a COPY and a server's cursor work."""
    with single.engine(postgres).connect() as connection:
        raw: Any = connection.connection.driver_connection
        cursor = raw.execute("SELECT 1; SELECT 2")
        assert [cursor.fetchall(), cursor.nextset(), cursor.fetchall()] == [[(1,)], True, [(2,)]]
        raw.rollback()
        raw.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert raw.execute("SELECT current_setting('transaction_isolation')").fetchall() == [("repeatable read",)]
        raw.rollback()
        with raw.cursor().copy("COPY (SELECT 7) TO STDOUT") as copy:
            assert list(copy.rows()) == [("7",)]
        raw.rollback()
        with raw.cursor("named") as cursor:
            assert cursor.execute("SELECT 7").fetchall() == [(7,)]
        raw.rollback()
        with raw.pipeline():
            assert raw.execute("SELECT 7").fetchall() == [(7,)]
        raw.rollback()
        with raw.transaction():
            assert raw.execute("SELECT 7").fetchall() == [(7,)]


def test_statements_are_prepared_as_ever(single: SQLPool, postgres: DatabaseConfig) -> None:
    """A text that comes often as the first one of its transaction is prepared once, and answers with its values."""
    with single.engine(postgres).connect() as connection:
        for number in range(12):
            assert connection.execute(text("SELECT CAST(:n AS int)"), {"n": number}).scalar() == number
            connection.commit()
        raw: Any = connection.connection.driver_connection
        prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT CAST%'"
        assert raw.execute(prepared).fetchall() == [(1,)]


def test_a_session_that_the_server_ends_is_lost(
    single: SQLPool, postgres: DatabaseConfig, postgres_server: EmbeddedPostgres
) -> None:
    """Whoever was executing its first statement reads why, and the next one has another connection."""

    def sleep() -> None:
        with single.connection(postgres) as connection:
            connection.execute(text("SELECT pg_sleep(20)"))

    error = error_of_ended(postgres_server, "SELECT pg_sleep(20)", sleep)
    assert "terminating connection due to administrator command" in str(error)
    assert ask(single, postgres, "session") == 7


def test_a_session_that_was_ended_before_says_why(
    single: SQLPool, postgres: DatabaseConfig, postgres_server: EmbeddedPostgres
) -> None:
    """What the server said at the session's end is the error, though nothing was executed when it said so."""

    def ask_once_ended() -> None:
        with single.connection(postgres) as connection, psycopg.connect(postgres_server.url()) as other:
            other.execute("SELECT pg_terminate_backend(%s, 20000)", (backend(connection),))
            connection.execute(text("SELECT 7"))

    with pytest.raises(DatabaseUnavailable, match="terminating connection due to administrator command"):
        ask_once_ended()


def test_interrupts_mix_up_no_answers(single: SQLPool, postgres: DatabaseConfig) -> None:
    """Ctrl-C at any moment of a transaction never leaves an answer to be read by the next one, nor a connection."""
    numbers = count(1)

    def step() -> None:
        number = next(numbers)
        with single.connection(postgres) as connection:
            assert connection.execute(text("SELECT CAST(:n AS int)"), {"n": number}).scalar() == number

    interrupt(step, 200)
    step()
    assert single.get_stats()["metrics"]["total_connections"] == 1


class Alarm(Exception):
    """Raised by a signal's handler, it does not make SQLAlchemy close the connection, as a KeyboardInterrupt does."""


def test_an_error_at_any_moment_leaves_no_pipeline(single: SQLPool, postgres: DatabaseConfig) -> None:
    """A connection that is given back after what a signal's handler raised executes the next statement."""
    ask(single, postgres, "session")  # an engine's first use asks the server this and that
    reached = 0

    def step() -> None:
        with suppress(DBAPIError):  # the rollback finds the connection closed
            ask(single, postgres, "session")

    while break_off(step, Alarm, first_statement, reached):
        reached += 1
        assert single.execute_query(postgres, "SELECT 8", timeout=20) == [(8,)]
        assert reached < 2000
    assert reached or not CAN_PIPELINE


def test_the_private_names_of_psycopg_mean_what_they_did() -> None:
    """A cursor executes by _execute_gen(), in the steps that the first statement of a transaction repeats."""
    names = ["self", "query", "params", "prepare", "binary"]
    assert list(inspect.signature(psycopg.Cursor._execute_gen).parameters) == names
    steps = inspect.getsource(psycopg.Cursor._execute_gen)
    assert steps.index("_start_query") < steps.index("_maybe_prepare_gen") < steps.index("_last_query = query")
    assert steps.index("_last_query = query") < steps.index("_prepared.maintain_gen(self._conn)")
    begun = inspect.getsource(psycopg.Cursor._start_query)
    assert "if self.closed" in begun
    assert "self._reset()" in begun
    assert "self._tx = adapt.Transformer(self)" in begun
    sent = inspect.getsource(psycopg.Cursor._maybe_prepare_gen)
    assert "self._conn._prepared.maybe_add_to_cache(pgq, prep, name)" in sent
    assert "self._conn._prepared.validate(key, prep, name, results)" in sent
    assert sent.index("self._check_results(results)") < sent.index("self._set_results(results)")
    assert "_get_tx_start_command()" in inspect.getsource(psycopg.Connection._start_query)
    assert list(inspect.signature(PrepareManager.get).parameters) == ["self", "query", "prepare"]
    assert {each.name for each in Prepare} == {"NO", "YES", "SHOULD"}
    assert callable(psycopg.Cursor._query_cls.convert)


def test_queries_are_told_from_other_texts() -> None:
    """One that reads or changes rows is one, unless it has a semicolon, wherever that stands."""
    assert is_one_query(" select 1")
    assert is_one_query("WITH a AS (SELECT 1) DELETE FROM b")
    for other in ("SELECT 1;", "SELECT ';'", "SET TRANSACTION READ ONLY", "SELECTED", "COPY a FROM STDIN", "", "BEGIN"):
        assert not is_one_query(other)
