"""What a migration means for the streams of tasks whose statements asyncpg has prepared before it."""

from __future__ import annotations

import asyncpg
import pytest

from app.pools.sql_pool import DatabaseConfig, SQLPool


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
