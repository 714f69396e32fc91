"""execute_query on psycopg: by a cursor at first, and without one once psycopg has prepared the text."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg._preparing import PrepareManager
from psycopg._queries import PostgresQuery
from psycopg.adapt import Transformer
from psycopg.types.json import Jsonb
from psycopg.types.string import TextLoader

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings
from app.pools.sql_pool.psycopg_fetch import Fetcher
from tests.support.interrupts import interrupt

OFTEN = 8
"""More often than psycopg executes a text before it prepares it."""


@pytest.fixture
def single(postgres: DatabaseConfig) -> Iterator[SQLPool]:
    with SQLPool(SQLPoolSettings(max_connections=1, checkout_timeout=20)) as pool:
        yield pool


def fetcher_of(pool: SQLPool, config: DatabaseConfig) -> Fetcher:
    """Return what the pool's only connection executes with."""
    (entry,) = pool._sync(config).bucket._entries
    fetcher: Fetcher = entry.resource.fetcher
    return fetcher


def how_many_prepared(pool: SQLPool, config: DatabaseConfig) -> int:
    """Return how many statements the server has prepared on the pool's only connection."""
    (row,) = pool.execute_query(config, "SELECT count(*) AS n FROM pg_prepared_statements")
    number: int = row.n
    return number


VALUES: list[tuple[str, tuple[Any, ...]]] = [
    ("SELECT ?::int AS a, ?::text AS b", (1, "x")),
    ("SELECT ? AS a", (None,)),
    ("SELECT ?::bytea AS a", (b"\x00\xff",)),
    ("SELECT ?::int[] AS a, 'ä' AS \"ö\", '%' AS c", ([1, 2, 3],)),
    ("SELECT 1 AS a, 2 AS a", ()),
    ("VALUES (1, 'one'), (2, 'two')", ()),
    ("SELECT", ()),
    ("SELECT 1 AS a WHERE false", ()),
    ("SELECT repeat('x', ?) AS a FROM generate_series(1, 500)", (1000,)),
    ("INSERT INTO kept (a) VALUES (?) RETURNING a", (7,)),
    ("INSERT INTO kept (a) VALUES (?)", (7,)),
    ("DELETE FROM kept", ()),
]


@pytest.mark.parametrize(("sql", "values"), VALUES, ids=[sql for sql, _ in VALUES])
def test_a_prepared_statement_returns_what_the_first_did(
    single: SQLPool, postgres: DatabaseConfig, sql: str, values: tuple[Any, ...]
) -> None:
    """The same rows with the same names, however often a text is executed."""
    single.execute_query(postgres, "CREATE TABLE kept (a INT)")
    first, *others = [single.execute_query(postgres, sql, values) for _ in range(OFTEN)]
    assert others == [first] * len(others)
    assert [list(map(repr, rows)) for rows in others] == [list(map(repr, first))] * len(others)
    assert len(fetcher_of(single, postgres)._queries) == 1


def test_adapters_do_not_depend_on_how_often_a_text_is_executed(single: SQLPool, postgres: DatabaseConfig) -> None:
    """What a lease has set on its connection since makes no other value of the same column."""
    single.execute_query(postgres, "SELECT 1")
    with single.engine(postgres).connect() as connection:
        raw: Any = connection.connection.driver_connection
        raw.adapters.register_loader("date", TextLoader)
    found = [single.execute_query(postgres, "SELECT '2000-01-02'::date") for _ in range(OFTEN)]
    assert found == found[:1] * OFTEN


def test_values_of_each_type_have_a_statement_of_their_own(single: SQLPool, postgres: DatabaseConfig) -> None:
    """Small and large integers, texts and nulls in the same place are each what they are."""
    for _ in range(OFTEN):
        for value in (1, 70_000, 5_000_000_000, "1", None, 1.5):
            assert single.execute_query(postgres, "SELECT ? AS a", (value,)) == [(value,)]
    assert how_many_prepared(single, postgres) == 5  # the null and the text are both of no type yet
    assert len(fetcher_of(single, postgres)._queries) == 1


@pytest.mark.parametrize(
    ("sql", "good", "bad", "error"),
    [
        ("SELECT 10 / ?::int", (5,), (0,), psycopg.errors.DivisionByZero),
        ("SELECT ?::text", ("a",), ("a\0b",), psycopg.DataError),
        ("SELECT ?::int", (5,), (5, 6), psycopg.ProgrammingError),
        ("SELECT 5", (), (5,), psycopg.ProgrammingError),
        ("SELECT ?::int", (5,), (object(),), psycopg.ProgrammingError),
    ],
)
def test_an_error_of_a_prepared_statement_costs_nothing(
    single: SQLPool, postgres: DatabaseConfig, sql: str, good: Any, bad: Any, error: type[Exception]
) -> None:
    """It is the error that it always was, and the connection keeps the statement prepared."""
    for _ in range(OFTEN):
        single.execute_query(postgres, sql, good)
    prepared = how_many_prepared(single, postgres)
    for _ in range(3):
        with pytest.raises(error):
            single.execute_query(postgres, sql, bad)
        assert single.execute_query(postgres, sql, good)
    assert how_many_prepared(single, postgres) == prepared


def test_what_psycopg_gives_up_is_executed_by_a_cursor_again(single: SQLPool, postgres: DatabaseConfig) -> None:
    """A rollback makes psycopg forget all that it has prepared, and so does a statement that has become outdated."""
    single.execute_query(postgres, "CREATE TABLE plans (a INT)")
    single.execute_query(postgres, "INSERT INTO plans VALUES (7)")
    for _ in range(OFTEN):
        assert single.execute_query(postgres, "SELECT * FROM plans") == [(7,)]
    with single.connection(postgres) as connection:
        connection.exec_driver_sql("SELECT 1")  # rolled back
    assert how_many_prepared(single, postgres) == 0
    for _ in range(OFTEN):
        assert single.execute_query(postgres, "SELECT * FROM plans") == [(7,)]
    with SQLPool() as migration:
        migration.execute_query(postgres, "ALTER TABLE plans ADD COLUMN b INT")
    for _ in range(OFTEN):
        (row,) = single.execute_query(postgres, "SELECT * FROM plans")
        assert row._asdict() == {"a": 7, "b": None}


def test_many_texts_are_not_kept_for_ever(single: SQLPool, postgres: DatabaseConfig) -> None:
    """Neither here nor on the server, however many of them have come often."""
    for number in range(250):
        for _ in range(OFTEN):
            assert single.execute_query(postgres, f"SELECT {number} AS a{number}") == [(number,)]
    assert how_many_prepared(single, postgres) <= 101
    for _ in range(250):
        for _ in range(OFTEN):
            single.execute_query(postgres, "SELECT 7 AS a")
        with single.engine(postgres).connect() as connection:
            connection.exec_driver_sql("SELECT 1")  # rolled back, and psycopg prepares all anew
    assert len(fetcher_of(single, postgres)._queries) <= 200
    assert len(fetcher_of(single, postgres)._row_classes) <= 200


def test_values_are_converted_once(single: SQLPool, postgres: DatabaseConfig) -> None:
    """Those of a text that is not prepared as well, whatever others are, for they may be large."""
    for _ in range(OFTEN):
        single.execute_query(postgres, "SELECT 7")
    converted: list[str] = []

    def dumps(value: Any) -> str:
        converted.append(value)
        return json.dumps(value)

    for number in range(OFTEN):
        assert single.execute_query(postgres, f"SELECT ?::jsonb AS a{number}", (Jsonb("x", dumps),)) == [("x",)]
    assert len(converted) == OFTEN


def test_no_values_are_kept_whose_types_are_not_prepared(single: SQLPool, postgres: DatabaseConfig) -> None:
    """An idle connection does not hold on to them, although their text is prepared for others."""
    for _ in range(OFTEN):
        single.execute_query(postgres, "SELECT ?", (7,))
    assert single.execute_query(postgres, "SELECT ?", ("x" * 100_000,)) == [("x" * 100_000,)]
    (query,) = fetcher_of(single, postgres)._queries.values()
    assert query.params is None


def test_nothing_is_prepared_where_it_must_not_be(single: SQLPool, postgres: DatabaseConfig) -> None:
    """With prepared=False every call goes by a cursor."""
    config = replace(postgres, prepared=False)
    for _ in range(OFTEN):
        assert single.execute_query(config, "SELECT ?::int", (7,)) == [(7,)]
    assert how_many_prepared(single, config) == 0
    assert not fetcher_of(single, config)._queries


def test_threads_have_their_own_answers(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """Many threads on few connections get what they have asked for, from prepared statements too."""

    def ask(number: int) -> None:
        for n in range(50):
            assert pool.execute_query(postgres, f"SELECT ?::int + {n % 3} AS a", (number,)) == [(number + n % 3,)]

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(ask, range(12)))


def test_interrupts_mix_up_no_answers(single: SQLPool, postgres: DatabaseConfig) -> None:
    """Ctrl-C at any moment of a call never leaves an answer to be read by the next one, nor a connection."""
    numbers = count(1)

    def step() -> None:
        number = next(numbers)
        assert single.execute_query(postgres, "SELECT ?::int", (number,)) == [(number,)]

    for _ in range(OFTEN):
        step()
    interrupt(step, 200)
    step()
    assert single.get_stats()["metrics"]["total_connections"] == 1


def test_the_private_names_of_psycopg_mean_what_they_did() -> None:
    """A connection's prepared statements are known by text and types, the one used last at the end."""
    assert "key in self._names" in inspect.getsource(PrepareManager.maybe_add_to_cache)
    assert "self._names.move_to_end(key)" in inspect.getsource(PrepareManager.maybe_add_to_cache)
    assert "(query.query, query.types)" in inspect.getsource(PrepareManager.key)
    assert "self._names.clear()" in inspect.getsource(PrepareManager.clear)  # the same mapping, emptied
    assert "conn._deallocate(name)" in inspect.getsource(PrepareManager.maintain_gen)
    for name in ("convert", "dump"):
        assert list(inspect.signature(getattr(PostgresQuery, name)).parameters)[-1] == "vars"
    # A cursor notes what it executes unless that is prepared.
    assert "self._query = query" in inspect.getsource(psycopg.Cursor._execute_send)
    assert "self._query" not in inspect.getsource(psycopg.Cursor._send_query_prepared)
    assert "self._query = None" in inspect.getsource(psycopg.Cursor._reset)
    assert callable(Transformer.load_rows)
    assert callable(Transformer.set_pgresult)
