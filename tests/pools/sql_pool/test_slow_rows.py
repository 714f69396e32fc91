"""Rows that come slowly from the caller's own iterable: a call ends between two of them."""

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import islice

import pytest

from app.pools.errors import QueryTimeout
from app.pools.sql_pool import DatabaseConfig, SQLPool
from tests.support.waiting import eventually_async

ENOUGH = 1000


class Slow:
    """A thousand rows that take ten seconds, counted as they are taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[tuple[int]]:
        for number in range(ENOUGH):
            time.sleep(0.01)
            self.taken += 1
            yield (number,)


STORE: dict[str, Callable[[SQLPool, DatabaseConfig, Slow, float | None], int]] = {
    "execute_many": lambda pool, database, rows, timeout: pool.execute_many(
        database, "INSERT INTO numbers VALUES (?)", rows, timeout
    ),
    "copy_rows": lambda pool, database, rows, timeout: pool.copy_rows(database, "numbers", ["n"], rows, timeout),
}


@pytest.fixture
def numbers(pool: SQLPool, database: DatabaseConfig) -> DatabaseConfig:
    pool.execute_query(database, "CREATE TABLE numbers (n INTEGER)")
    return database


@pytest.mark.parametrize("store", STORE.values(), ids=STORE)
def test_a_deadline_is_kept_between_two_rows(
    pool: SQLPool, numbers: DatabaseConfig, store: Callable[[SQLPool, DatabaseConfig, Slow, float | None], int]
) -> None:
    """The call ends at its timeout, takes no more rows, and has stored none."""
    rows = Slow()
    with pytest.raises(QueryTimeout):
        store(pool, numbers, rows, 0.3)

    assert 0 < rows.taken < ENOUGH / 2
    assert 0 == pool.execute_query(numbers, "SELECT count(*) AS n FROM numbers")[0].n
    assert 3 == pool.execute_many(numbers, "INSERT INTO numbers VALUES (?)", islice(rows, 3))


async def test_a_deadline_of_a_task_is_kept_between_two_rows(pool: SQLPool, sqlite: DatabaseConfig) -> None:
    """On SQLite, where they are taken in a thread, a task's call ends at its timeout as well."""
    pool.execute_query(sqlite, "CREATE TABLE numbers (n INTEGER)")
    for store in (
        lambda rows: pool.execute_many_async(sqlite, "INSERT INTO numbers VALUES (?)", rows, 0.3),
        lambda rows: pool.copy_rows_async(sqlite, "numbers", ["n"], rows, 0.3),
    ):
        rows = Slow()
        with pytest.raises(QueryTimeout):
            await store(rows)
        assert 0 < rows.taken < ENOUGH / 2
    await pool.stop_async()


async def test_a_cancelled_task_takes_no_more_rows(pool: SQLPool, sqlite: DatabaseConfig) -> None:
    """Nor does it keep its connection, or the others from writing."""
    pool.execute_query(sqlite, "CREATE TABLE numbers (n INTEGER)")
    rows = Slow()
    storing = asyncio.create_task(pool.execute_many_async(sqlite, "INSERT INTO numbers VALUES (?)", rows))
    await eventually_async(lambda: rows.taken)
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    await eventually_async(lambda: not pool.get_stats()["metrics"]["active_connections"], 4)
    await pool.execute_query_async(sqlite, "INSERT INTO numbers VALUES (-1)")

    assert rows.taken < ENOUGH / 2
    assert [(-1,)] == await pool.execute_query_async(sqlite, "SELECT n FROM numbers")
    await pool.stop_async()
