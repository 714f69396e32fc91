"""execute_many on psycopg, which sends some hundred statements before it reads the first answer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg._preparing import PrepareManager

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings
from app.pools.sql_pool.embedded import EmbeddedPostgres
from tests.support.interrupts import interrupt
from tests.support.postgres import error_of_ended

STORE = "INSERT INTO kept (a, b) VALUES (?, ?)"


@pytest.fixture
def single(postgres: DatabaseConfig) -> Iterator[SQLPool]:
    with SQLPool(SQLPoolSettings(max_connections=1, checkout_timeout=20)) as pool:
        pool.execute_query(postgres, "CREATE TABLE kept (a BIGINT PRIMARY KEY, b TEXT)")
        yield pool


def backend(pool: SQLPool, config: DatabaseConfig) -> int:
    """Return which of the server's processes the pool's only connection has."""
    (row,) = pool.execute_query(config, "SELECT pg_backend_pid() AS pid")
    number: int = row.pid
    return number


def stored(pool: SQLPool, config: DatabaseConfig) -> list[tuple[Any, ...]]:
    """Return all rows, in order."""
    return [tuple(row) for row in pool.execute_query(config, "SELECT a, b FROM kept ORDER BY a")]


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("number", [0, 1, 199, 200, 201, 1000])
def test_every_row_is_stored_once(single: SQLPool, postgres: DatabaseConfig, number: int, prepared: bool) -> None:
    """However many there are, whether or not anything may be prepared."""
    config = replace(postgres, prepared=prepared)
    rows = [(n, f"n {n}") for n in range(number)]
    assert single.execute_many(config, STORE, iter(rows)) == number
    assert stored(single, config) == rows


@pytest.mark.parametrize("prepared", [True, False])
def test_rows_may_have_values_of_any_types(single: SQLPool, postgres: DatabaseConfig, prepared: bool) -> None:
    """Small and large integers, and nulls among texts, in any order."""
    config = replace(postgres, prepared=prepared)
    rows = [(n**6, None if n % 3 else f"n {n}") for n in range(1000)]
    assert single.execute_many(config, STORE, rows) == 1000
    assert stored(single, config) == rows
    assert single.execute_many(config, "DELETE FROM kept WHERE a = :a", [{"a": a} for a, _ in rows]) == 1000
    assert stored(single, config) == []


def test_large_values_and_large_results_pass(single: SQLPool, postgres: DatabaseConfig) -> None:
    """Neither side waits for the other, whatever they send at the same time."""
    rows = [(n, "x" * 1_000_000) for n in range(40)]
    assert single.execute_many(postgres, f"{STORE} RETURNING b || b || b", rows) == 40
    assert single.execute_query(postgres, "SELECT count(*), sum(length(b)) FROM kept") == [(40, 40_000_000)]
    assert single.execute_many(postgres, "SELECT repeat('x', ?)", [(100_000,)] * 1000) == 1000


FAULTS: list[tuple[str, str, list[Any], type[Exception]]] = [
    ("a key that is there", STORE, [*((n, "x") for n in range(500)), (7, "again")], psycopg.errors.UniqueViolation),
    ("syntax", "INSERT INTO kept VALUE (?, ?)", [(1, "x")] * 500, psycopg.errors.SyntaxError),
    ("no such table", "INSERT INTO lost VALUES (?, ?)", [(1, "x")], psycopg.errors.UndefinedTable),
    ("a row too short", STORE, [*((n, "x") for n in range(500)), (501,)], psycopg.ProgrammingError),
    ("NUL", STORE, [(1, "x"), (2, "a\0b")], psycopg.DataError),
    ("too many values", f"SELECT {'?, ' * 70_000} ?", [(1,) * 70_001], psycopg.OperationalError),
]


@pytest.mark.parametrize(("sql", "rows", "error"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_row_that_fails_undoes_all_and_costs_no_connection(
    single: SQLPool, postgres: DatabaseConfig, sql: str, rows: list[Any], error: type[Exception]
) -> None:
    """The error is the one of the first statement that has failed."""
    before = backend(single, postgres)
    with pytest.raises(error):
        single.execute_many(postgres, sql, rows)
    assert stored(single, postgres) == []
    assert single.execute_many(postgres, STORE, [(1, "x")]) == 1
    assert backend(single, postgres) == before


def test_an_error_of_the_rows_themselves_is_the_callers(single: SQLPool, postgres: DatabaseConfig) -> None:
    """What an iterable raises is raised, nothing is stored, and the connection stays, at any point."""

    def rows(number: int) -> Iterator[tuple[int, str]]:
        yield from ((n, "x") for n in range(number))
        raise LookupError("no more")

    before = backend(single, postgres)
    for number in (0, 1, 200, 450):
        with pytest.raises(LookupError, match="no more"):
            single.execute_many(postgres, STORE, rows(number))
        assert stored(single, postgres) == []
    assert backend(single, postgres) == before


def test_no_more_rows_are_asked_for_once_one_has_failed(single: SQLPool, postgres: DatabaseConfig) -> None:
    """An endless iterable ends with the first error."""
    with pytest.raises(psycopg.errors.UniqueViolation):
        single.execute_many(postgres, STORE, ((n % 300, "x") for n in count()))
    assert stored(single, postgres) == []


def test_a_session_that_the_server_ends_is_lost(
    single: SQLPool, postgres: DatabaseConfig, postgres_server: EmbeddedPostgres
) -> None:
    """The caller reads why, nothing is stored, and the next call has another connection."""
    slow = "INSERT INTO kept SELECT ?, pg_sleep(0.05)::text"
    rows = ((n,) for n in range(2000))
    error = error_of_ended(postgres_server, slow[:23], lambda: single.execute_many(postgres, slow, rows))
    assert "terminating connection due to administrator command" in str(error)
    assert stored(single, postgres) == []


def test_interrupts_mix_up_no_answers(single: SQLPool, postgres: DatabaseConfig) -> None:
    """Ctrl-C at any moment stores all rows or none, and leaves nothing to be read by the next call."""
    numbers = count()

    def step() -> None:
        first = next(numbers) * 10
        single.execute_many(postgres, STORE, [(first + n, "x") for n in range(10)])
        assert single.execute_query(postgres, "SELECT ?::bigint", (first,)) == [(first,)]

    interrupt(step, 100)
    step()
    whole = "SELECT count(*) AS n FROM kept GROUP BY a / 10 HAVING count(*) <> 10"
    assert single.execute_query(postgres, whole) == []
    assert single.get_stats()["metrics"]["total_connections"] == 1


def test_the_private_names_of_psycopg_mean_what_they_did() -> None:
    """A statement is looked up, noted when it is sent, and judged by its answer."""
    assert list(inspect.signature(PrepareManager.get).parameters) == ["self", "query", "prepare"]
    assert list(inspect.signature(PrepareManager.maybe_add_to_cache).parameters) == ["self", "query", "prep", "name"]
    assert list(inspect.signature(PrepareManager.validate).parameters)[1:4] == ["key", "prep", "name"]
    assert list(inspect.signature(PrepareManager.maintain_gen).parameters) == ["self", "conn"]
    assert "_prepared.clear()" in inspect.getsource(psycopg.Transaction._rollback_gen)
