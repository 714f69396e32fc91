"""What a migration means for statements that their driver has prepared before it."""

from __future__ import annotations

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings

OTHER_MOODS = ("DROP TYPE mood CASCADE", "CREATE TYPE mood AS ENUM ('good')", "ALTER TABLE plans ADD COLUMN m mood")
NUMBERS = ("ALTER TABLE plans ALTER COLUMN a TYPE INT USING a::int",)


@pytest.mark.parametrize(
    ("sql", "values", "migration"),
    [
        ("SELECT 1 AS n FROM plans WHERE m = ?", ("good",), OTHER_MOODS),
        ("SELECT 1 AS n FROM plans WHERE m = ANY (?)", (["good"],), OTHER_MOODS),
        ("INSERT INTO plans (m) VALUES (?) RETURNING 1 AS n", ("good",), OTHER_MOODS),
        ("SELECT 1 AS n FROM plans WHERE a = ?", ("5",), NUMBERS),
        ("SELECT 1 AS n FROM plans WHERE coalesce(a, ?) = '5'", ("5",), NUMBERS),
        ("INSERT INTO plans (a) VALUES (?) RETURNING 1 AS n", ("5",), NUMBERS),
    ],
)
def test_other_types_of_values_fail_no_statement(
    pool: SQLPool, postgres: DatabaseConfig, sql: str, values: tuple[object, ...], migration: tuple[str, ...]
) -> None:
    """A statement whose columns have other types after a migration takes the same values as before."""
    pool.execute_query(postgres, "CREATE TYPE mood AS ENUM ('good')")
    pool.execute_query(postgres, "CREATE TABLE plans AS SELECT '5' AS a, 'good'::mood AS m")
    for _ in range(8):
        assert pool.execute_query(postgres, sql, values)[0].n == 1
    with SQLPool() as other:
        for step in migration:
            other.execute_query(postgres, step)
        other.execute_query(postgres, "INSERT INTO plans (a, m) VALUES ('5', 'good')")
    for _ in range(8):
        assert pool.execute_query(postgres, sql, values)[0].n == 1
    assert pool.get_stats()["metrics"]["total_connections"] == 1


def test_a_statement_that_a_migration_has_made_wrong_is_executed_as_any_other(
    pool: SQLPool, postgres: DatabaseConfig
) -> None:
    """Its error shows the place in the text, and other statements work on."""
    pool.execute_query(postgres, "CREATE TABLE plans (a INT)")
    for _ in range(8):
        pool.execute_query(postgres, "SELECT a FROM plans")
    with SQLPool() as other:
        other.execute_query(postgres, "ALTER TABLE plans RENAME COLUMN a TO b")
    for _ in range(3):
        with pytest.raises(psycopg.errors.UndefinedColumn, match="LINE 1: SELECT a FROM plans"):
            pool.execute_query(postgres, "SELECT a FROM plans")
        assert pool.execute_query(postgres, "SELECT b FROM plans") == []
    assert pool.get_stats()["metrics"]["total_connections"] == 1


def test_another_type_of_a_value_costs_a_lease_its_connection(postgres: DatabaseConfig) -> None:
    """A lease that commits each statement by itself fails once, for only a rollback would have psycopg prepare anew."""
    wanted = text("SELECT * FROM plans WHERE m = :m")
    with SQLPool(SQLPoolSettings(max_connections=1)) as pool, SQLPool() as other:
        other.execute_query(postgres, "CREATE TYPE mood AS ENUM ('good')")
        other.execute_query(postgres, "CREATE TABLE plans AS SELECT 'good'::mood AS m")

        def ask() -> object:
            with pool.engine(postgres).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                return connection.execute(wanted, {"m": "good"}).all()

        for _ in range(8):
            ask()
        for step in OTHER_MOODS:
            other.execute_query(postgres, step)
        with pytest.raises(DBAPIError, match="cache lookup failed"):
            ask()
        assert ask() == []


async def test_a_migration_fails_no_stream(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """A stream of a statement that is prepared yields the new columns, and executes nothing twice."""
    await pool.execute_query_async(postgres, "CREATE TABLE plans (id INT)")
    insert = "INSERT INTO plans (id) VALUES (?) RETURNING *"
    for number in range(3):
        assert len([row async for row in pool.stream_async(postgres, insert, (number,))]) == 1
        await pool.execute_query_async(postgres, f"ALTER TABLE plans ADD COLUMN c{number} INT")
        found = [row async for row in pool.stream_async(postgres, "SELECT * FROM plans ORDER BY id", batch=2)]
        assert [row.id for row in found] == list(range(number + 1))
        assert len(found[0]) == number + 2
    assert pool.get_stats()["pools"][f"{postgres.label} (async)"]["discarded"] == 0
    await pool.stop_async()


async def test_a_type_that_a_migration_has_changed_fails_one_stream(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """asyncpg learns of another composite type from its rows only; the next stream decodes them."""
    await pool.execute_query_async(postgres, "CREATE TYPE pair AS (x INT, y INT)")
    await pool.execute_query_async(postgres, "CREATE TABLE pairs AS SELECT ROW(1, 2)::pair AS pair")

    async def pairs() -> list[object]:
        return [tuple(row.pair) async for row in pool.stream_async(postgres, "SELECT * FROM pairs")]

    assert await pairs() == [(1, 2)]
    with SQLPool() as migration:
        migration.execute_query(postgres, "ALTER TYPE pair DROP ATTRIBUTE y, ADD ATTRIBUTE y TEXT")
    with pytest.raises(asyncpg.OutdatedSchemaCacheError):
        await pairs()
    assert await pairs() == [(1, None)]
    await pool.stop_async()
