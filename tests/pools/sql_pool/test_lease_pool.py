"""The private names of SQLAlchemy that the pool relies on still mean what they did."""

import asyncio
import inspect
from pathlib import Path
from sqlite3 import OperationalError

import pytest
from greenlet import getcurrent
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import create_engine, text
from sqlalchemy.engine import default
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool, base
from sqlalchemy.util.concurrency import await_, greenlet_spawn

from app.pools.errors import DatabaseUnavailable, PoolTimeout
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config
from app.pools.sql_pool.writers import writer_lock
from tests.support.waiting import eventually_async


async def test_a_greenlet_is_left_and_entered_again() -> None:
    """greenlet_spawn() runs a function in which await_() awaits; its parent is the greenlet of whoever called."""
    caller = getcurrent()

    def inside(number: int) -> tuple[int, object]:
        return await_(asyncio.sleep(0, number)), getcurrent().parent

    assert await greenlet_spawn(inside, 7) == (7, caller)


COUNTING = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n)"


def test_a_pool_is_asked_and_given_back_records() -> None:
    """Pool.connect() calls _do_get(), a return calls _do_return_conn(); a record is made by _ConnectionRecord(pool)."""
    assert list(inspect.signature(Pool._do_get).parameters) == ["self"]
    assert list(inspect.signature(Pool._do_return_conn).parameters) == ["self", "record"]
    assert list(inspect.signature(base._ConnectionRecord.__init__).parameters)[:2] == ["self", "pool"]
    assert "_do_get" in inspect.getsource(base._ConnectionRecord.checkout)
    assert "_do_return_conn" in inspect.getsource(Pool._return_conn)


def test_a_connection_leads_to_its_record() -> None:
    """What a Connection has from its pool knows its record by the name that a lease's end uses, and can hold more."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        record = connection.connection._connection_record  # type: ignore[attr-defined]
        assert isinstance(record, base._ConnectionRecord)
        assert record.dbapi_connection is connection.connection.dbapi_connection
        connection.connection.entry = record  # type: ignore[attr-defined]
    engine.dispose()


def test_a_pool_makes_its_records_by_a_method_of_its_own() -> None:
    """_create_connection() returns a record, and nothing but the pool itself calls it; _dialect is the engine's."""
    assert list(inspect.signature(Pool._create_connection).parameters) == ["self"]
    assert "_ConnectionRecord(self)" in inspect.getsource(Pool._create_connection)
    assert "_create_connection" not in inspect.getsource(base._ConnectionRecord)
    engine = create_engine("sqlite://")
    assert engine.pool._dialect is engine.dialect
    engine.dispose()


def test_a_record_connects_as_it_is_made_and_reconnects_after_an_invalidation() -> None:
    """_ConnectionRecord(pool) has the driver's connection at once, under the public names that the pool reads."""
    engine = create_engine("sqlite://")
    record = base._ConnectionRecord(engine.pool)
    assert record.driver_connection is record.dbapi_connection is not None
    assert record._is_hard_or_soft_invalidated() is False
    record.invalidate(soft=True)
    assert record._is_hard_or_soft_invalidated() is True
    record.close()
    engine.dispose()


def test_a_record_knows_whether_it_was_invalidated() -> None:
    """_is_hard_or_soft_invalidated() is there, and _is_asyncio says which kind of pool it is."""
    assert callable(base._ConnectionRecord._is_hard_or_soft_invalidated)
    assert hasattr(Pool, "_is_asyncio")


def test_a_pool_is_told_of_what_its_connections_were_lost_by() -> None:
    """_invalidate() is called with the driver's error, which a DBAPIError has as its ``orig``."""
    assert list(inspect.signature(Pool._invalidate).parameters) == ["self", "connection", "exception", "_checkin"]
    source = inspect.getsource(SyncConnection._handle_dbapi_exception)
    assert "self.engine.pool._invalidate(dbapi_conn_wrapper, e)" in source


def test_a_dialect_answers_a_ping() -> None:
    """_do_ping_w_event() asks a raw connection and returns whether it works."""
    assert callable(default.DefaultDialect._do_ping_w_event)
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        assert engine.dialect._do_ping_w_event(raw) is True
    engine.dispose()


def test_an_invalidated_connection_is_not_lent_again(pool: SQLPool, database: DatabaseConfig) -> None:
    """Connection.invalidate() takes the raw connection out of the pool, and the lease goes on with another."""
    with pool.connection(database) as connection:
        before = connection.connection.dbapi_connection
        connection.invalidate()
        assert connection.execute(text("SELECT 1")).scalar() == 1
        assert connection.connection.dbapi_connection is not before

    with pool.connection(database) as connection:
        assert connection.connection.dbapi_connection is not before


def test_a_lease_is_entered_once(pool: SQLPool, database: DatabaseConfig) -> None:
    """Entering a lease a second time is an error."""
    lease = pool.connection(database)
    with lease:
        pass
    with pytest.raises(RuntimeError, match="ask the pool for another"):
        lease.__enter__()


async def test_a_detached_connection_is_its_users_own(pool: SQLPool, database: DatabaseConfig) -> None:
    """Connection.detach() frees the place in the pool, and leaves the connection open until its user closes it."""
    with pool.engine(database).connect() as connection:
        connection.detach()
        assert pool.get_stats()["metrics"]["total_connections"] == 0
        assert connection.execute(text("SELECT 1")).scalar() == 1
        connection.rollback()
    async with pool.async_engine(database).connect() as connection:
        assert connection.sync_connection is not None
        connection.sync_connection.detach()
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1
    await pool.stop_async()


def _holder(pool: SQLPool, database: DatabaseConfig) -> str:
    """Return who the error of a checkout in vain says holds the connection."""
    with pytest.raises(PoolTimeout) as caught, pool.connection(database, timeout=0.05):
        pass
    return str(caught.value.longest_holder)


def test_the_holder_of_an_engines_connection_is_named(database: DatabaseConfig) -> None:
    """A lease through Engine or Session is held by the line that uses it, not by one of SQLAlchemy's."""
    with SQLPool(SQLPoolSettings(max_connections=1)) as pool:
        with pool.engine(database).connect():
            assert "test_lease_pool.py" in _holder(pool, database).split(" <- ")[0]
        with Session(pool.engine(database)) as session:
            session.execute(text("SELECT 1"))
            assert "test_lease_pool.py" in _holder(pool, database).split(" <- ")[0]


async def test_the_holder_of_an_async_engines_connection_is_named(database: DatabaseConfig) -> None:
    """A lease through AsyncEngine or AsyncSession, too, is held by the line that uses it."""
    async with SQLPool(SQLPoolSettings(max_connections=1)) as pool:
        engine = pool.async_engine(database)
        async with engine.connect():
            with pytest.raises(PoolTimeout) as caught:
                async with pool.connection(database, timeout=0.05):
                    pass
        assert "test_lease_pool.py" in str(caught.value.longest_holder).split(" <- ")[0]
        async with AsyncSession(engine) as session:
            await session.execute(text("SELECT 1"))
            with pytest.raises(PoolTimeout) as caught:
                async with pool.connection(database, timeout=0.05):
                    pass
        assert "test_lease_pool.py" in str(caught.value.longest_holder).split(" <- ")[0]


async def test_who_waits_in_vain_learns_what_the_other_side_holds(database: DatabaseConfig) -> None:
    """A task is told which threads hold the database's connections, and a thread which tasks do."""
    async with SQLPool(SQLPoolSettings(max_connections=2)) as pool:
        with pool.connection(database), pool.connection(database):
            with pytest.raises(PoolTimeout, match=r"2 of 2 in use.*test_lease_pool\.py") as caught:
                async with pool.connection(database, timeout=0.05):
                    pass
        async with pool.connection(database), pool.connection(database):
            with pytest.raises(PoolTimeout, match=r"2 of 2 in use.*test_lease_pool\.py") as caught:
                await asyncio.to_thread(pool.execute_query, database, "SELECT 1", timeout=0.05)
        assert "that its threads and tasks may have" in str(caught.value)


async def test_a_task_of_nothing_but_a_call_is_named(database: DatabaseConfig) -> None:
    """A call that is a task by itself is the holder by the task's name, for no code of its maker's is running."""
    slow = (
        "SELECT pg_sleep(60)"
        if database.backend == "postgresql"
        else "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    )
    async with SQLPool(SQLPoolSettings(max_connections=1)) as pool:
        call = asyncio.create_task(pool.execute_query_async(database, slow), name="counts")
        await eventually_async(lambda: pool.get_stats()["metrics"]["active_connections"] == 1)
        with pytest.raises(PoolTimeout, match=r"SQLPool\.execute_query_async in the task 'counts'"):
            await pool.execute_query_async(database, "SELECT 1", timeout=0.05)
        call.cancel()
        await asyncio.wait({call})


async def test_the_task_that_a_thread_of_the_pool_serves_is_named(tmp_path: Path) -> None:
    """The holder of a SQLite connection, or of the writer's turn, is the task that asked, not the pool's thread."""
    file = get_sqlite_config(tmp_path / "x.db", busy_timeout=0.1)
    async with SQLPool(SQLPoolSettings(max_connections=1)) as pool:
        rows = pool.stream_async(file, f"{COUNTING} SELECT i FROM n")
        async for _ in rows:
            assert "test_the_task_that" in (await asyncio.to_thread(_holder, pool, file)).split(" <- ")[0]
            break
        await rows.aclose()  # type: ignore[attr-defined]

        async def count() -> None:
            await pool.execute_query_async(file, f"{COUNTING} SELECT max(i) FROM n")

        await eventually_async(lambda: not pool.get_stats()["metrics"]["active_connections"])
        endless = asyncio.create_task(count())
        await eventually_async(lambda: pool.get_stats()["metrics"]["active_connections"])
        assert "test_lease_pool.py" in (await asyncio.to_thread(_holder, pool, file)).split(" <- ")[0]
        endless.cancel()
        await asyncio.wait({endless})


async def test_the_task_that_writes_is_named(tmp_path: Path) -> None:
    """Who waits too long for SQLite's writer is told the task's line, not one of the thread that works for it."""
    file = get_sqlite_config(tmp_path / "x.db", busy_timeout=0.1)
    async with SQLPool() as pool:
        await pool.execute_query_async(file, "CREATE TABLE notes (body TEXT)")
        async with pool.transaction(file):
            with pytest.raises(OperationalError, match=r"checked out at test_lease_pool\.py"):
                await pool.execute_query_async(file, "INSERT INTO notes VALUES ('x')")

        async def write() -> None:
            await pool.execute_query_async(file, f"INSERT INTO notes {COUNTING} SELECT max(i) FROM n")

        endless = asyncio.create_task(write())
        turns = writer_lock("", file.database)._queue
        await eventually_async(turns._leased)  # not only a connection: it might write as the second one
        with pytest.raises(OperationalError, match=r"checked out at test_lease_pool\.py:\d+ in write"):
            await asyncio.to_thread(pool.execute_query, file, "INSERT INTO notes VALUES ('x')")
        endless.cancel()
        await asyncio.wait({endless})


END_ITSELF = text("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)")


@pytest.mark.parametrize("foreign", [True, False])
async def test_a_loss_is_told_of_the_database_that_it_concerns(
    pool: SQLPool, sqlite: DatabaseConfig, postgres: DatabaseConfig, foreign: bool
) -> None:
    """An Engine's lost connection within another database's lease is SQLAlchemy's error, and not the lease's loss."""
    expected: type[Exception] = DBAPIError if foreign else DatabaseUnavailable
    lent = sqlite if foreign else postgres

    def lose() -> None:
        with pool.connection(lent) as connection:
            if not foreign:
                connection.execute(END_ITSELF)
            with pool.engine(postgres).connect() as other:
                other.execute(END_ITSELF)

    async def lose_async() -> None:
        async with pool.connection(lent) as connection:
            if not foreign:
                await connection.execute(END_ITSELF)
            async with pool.async_engine(postgres).connect() as other:
                await other.execute(END_ITSELF)

    with pytest.raises(expected) as caught:
        lose()
    if not foreign:
        assert postgres.label in str(caught.value)
    with pytest.raises(expected):
        await lose_async()
    await pool.stop_async()
