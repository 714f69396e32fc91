"""The handle of one database."""

import inspect

import pytest
from sqlalchemy import text

from app.pools.sql_pool import Database, DatabaseConfig, SQLPool

CALLS = [
    name
    for name, member in inspect.getmembers(SQLPool, inspect.isfunction)
    if "config" in inspect.signature(member).parameters and not name.startswith("_")
]


@pytest.mark.parametrize("name", CALLS)
def test_the_handle_has_every_call_of_the_pool_without_the_config(name: str) -> None:
    """Arguments and defaults are the pool's, in the same order."""
    pools = list(inspect.signature(getattr(SQLPool, name)).parameters.values())
    handles = list(inspect.signature(getattr(Database, name)).parameters.values())

    assert handles == [each for each in pools if each.name != "config"]


async def test_the_handle_reaches_its_database(pool: SQLPool, database: DatabaseConfig) -> None:
    """Each kind of call works on the database of the config."""
    handle = Database(pool, database)
    handle.execute_query("CREATE TABLE notes (body TEXT)")

    assert handle.execute_many("INSERT INTO notes VALUES (?)", [("a",)]) == 1
    assert await handle.execute_many_async("INSERT INTO notes VALUES (?)", [("b",)]) == 1
    assert handle.copy_rows("notes", ["body"], [("c",)]) == 1
    assert await handle.copy_rows_async("notes", ["body"], [("d",)]) == 1
    assert [row.body for row in handle.stream("SELECT body FROM notes ORDER BY body")] == ["a", "b", "c", "d"]
    assert len([row async for row in handle.stream_async("SELECT body FROM notes")]) == 4
    assert await handle.execute_query_async("SELECT count(*) FROM notes") == [(4,)]
    with handle.connection() as connection:
        assert connection.execute(text("SELECT count(*) FROM notes")).scalar() == 4
    async with handle.session() as session:
        assert (await session.execute(text("SELECT count(*) FROM notes"))).scalar() == 4
    assert repr(handle) == f"Database({database.label!r})"
    await pool.stop_async()
