"""Tasks on SQLite: what one of them does, or gives up, does not hold up the others."""

import asyncio
import gc
import inspect
import sqlite3
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import text

from app.pools.errors import DatabaseUnavailable, LeaseLeaked, PoolClosed, PoolTimeout
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config
from app.pools.sql_pool.aiosqlite_connection import Connection
from tests.support.threads import refuse_threads
from tests.support.waiting import eventually, eventually_async

NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
ENDLESS = f"{NUMBERS} SELECT count(*) FROM n"


@pytest.fixture
def file(tmp_path: Path) -> DatabaseConfig:
    return get_sqlite_config(tmp_path / "x.db", busy_timeout=60)


def active(pool: SQLPool) -> int:
    return pool.get_stats()["metrics"]["active_connections"]


async def hold_two(pool: SQLPool, file: DatabaseConfig) -> list[asyncio.Task[Any]]:
    """Keep both connections of a pool busy."""
    tasks = [asyncio.create_task(pool.execute_query_async(file, ENDLESS)) for _ in range(2)]
    await eventually_async(lambda: active(pool) == 2)
    return tasks


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("kind", ["connection", "transaction", "session"])
@pytest.mark.parametrize("sql", [ENDLESS, f"INSERT INTO numbers {NUMBERS} SELECT i FROM n"])
async def test_a_cancelled_lease_ends_its_statement(file: DatabaseConfig, kind: str, sql: str) -> None:
    """Whatever it leased, a task that is cancelled ends at once, and so does what it executed."""
    async with SQLPool(SQLPoolSettings(max_connections=1, checkout_timeout=20)) as pool:
        await pool.execute_query_async(file, "CREATE TABLE numbers (number INTEGER)")

        async def work() -> None:
            async with getattr(pool, kind)(file) as leased:
                executing.set()
                await leased.execute(text(sql))

        for ticks in range(6):  # from before the statement's begin to some way into it
            executing = asyncio.Event()
            task = asyncio.create_task(work())
            await executing.wait()
            for _ in range(ticks**4):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 20)
            assert await pool.execute_query_async(file, "SELECT count(*) FROM numbers") == [(0,)]
            await pool.execute_query_async(file, "DELETE FROM numbers")


async def test_a_cancelled_lease_no_longer_waits_to_write(file: DatabaseConfig) -> None:
    """A task that waits for the writer within its lease stops waiting when it is cancelled, and never writes."""
    async with SQLPool(SQLPoolSettings(max_connections=3, checkout_timeout=20)) as pool:
        await pool.execute_query_async(file, "CREATE TABLE numbers (number INTEGER)")

        async def write() -> None:
            async with pool.connection(file) as connection:
                await connection.execute(text("INSERT INTO numbers VALUES (1)"))
                await connection.commit()

        async with pool.transaction(file):
            tasks = [asyncio.create_task(write()) for _ in range(2)]
            await eventually_async(lambda: active(pool) == 3)
            await end(tasks)
            await eventually_async(lambda: active(pool) == 1)
        assert await pool.execute_query_async(file, "SELECT count(*) FROM numbers") == [(0,)]
        await asyncio.wait_for(write(), 20)


async def test_a_cancelled_stream_ends_its_statement(file: DatabaseConfig) -> None:
    """A stream that is cancelled before its first rows, or between later ones, leaves its connection for others."""
    async with SQLPool(SQLPoolSettings(max_connections=1, checkout_timeout=20)) as pool:

        async def read(sql: str) -> None:
            async for _ in pool.stream_async(file, sql, batch=1):
                reading.set()

        for sql in (ENDLESS, f"{NUMBERS} SELECT i FROM n"):
            for _ in range(10):
                reading = asyncio.Event()
                task = asyncio.create_task(read(sql))
                if sql is ENDLESS:
                    await eventually_async(lambda: active(pool) == 1)
                else:
                    await reading.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await pool.execute_query_async(file, "SELECT 1") == [(1,)]


async def test_callers_that_wait_do_not_starve_streams(file: DatabaseConfig) -> None:
    """With every connection a stream's and many callers in the queue, the streams go on, and end."""
    async with SQLPool(SQLPoolSettings(max_connections=2, checkout_timeout=20)) as pool:

        async def consume() -> int:
            count = 0
            async for _ in pool.stream_async(file, f"{NUMBERS} SELECT i FROM n LIMIT 1000", batch=50):
                count += 1
                started.set()
                await asyncio.sleep(0)
            return count

        started = asyncio.Event()
        streams = [asyncio.create_task(consume()) for _ in range(2)]
        await started.wait()
        await eventually_async(lambda: active(pool) == 2 or all(stream.done() for stream in streams))
        queries = [asyncio.create_task(pool.execute_query_async(file, "SELECT 1")) for _ in range(20)]
        assert await asyncio.wait_for(asyncio.gather(*streams), 20) == [1000, 1000]
        assert await asyncio.gather(*queries) == [[(1,)]] * 20


async def test_a_timeout_begins_with_the_call(file: DatabaseConfig, tmp_path: Path) -> None:
    """It covers the wait for a connection, and a busy database keeps nobody from another one."""
    async with SQLPool(SQLPoolSettings(max_connections=2, checkout_timeout=20)) as pool:
        busy = await hold_two(pool, file)
        started = time.monotonic()
        with pytest.raises(PoolTimeout):
            await pool.execute_query_async(file, "SELECT 1", timeout=0.05)
        assert time.monotonic() - started < 10
        waiting = [asyncio.create_task(pool.execute_query_async(file, "SELECT 1")) for _ in range(4)]
        other = get_sqlite_config(tmp_path / "other.db")
        assert await pool.execute_query_async(other, "SELECT 1", timeout=10) == [(1,)]
        await end([*waiting, *busy])


async def test_a_call_for_which_there_is_no_thread_is_not_executed_later(
    file: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of threads it fails, and nothing is done by a thread that becomes free."""
    async with SQLPool(SQLPoolSettings(max_connections=2, checkout_timeout=20)) as pool:
        pool.execute_query(file, "CREATE TABLE numbers (number INTEGER)")  # in this thread: the pool's first is busy
        with pool.connection(file), pool.connection(file):  # so that there are two
            pass
        busy = asyncio.create_task(pool.execute_query_async(file, ENDLESS))
        await eventually_async(lambda: active(pool) == 1)
        with monkeypatch.context() as patched:
            refuse_threads(patched, "poolwire-sql_")
            with pytest.raises(DatabaseUnavailable, match="new thread"):
                await pool.execute_query_async(file, "INSERT INTO numbers VALUES (1)")
        await end([busy])
        await eventually_async(lambda: active(pool) == 0)

        assert pool.execute_query(file, "SELECT number FROM numbers") == []
        with pool.connection(file), pool.connection(file):
            assert active(pool) == 2


async def test_a_stream_can_be_left_after_its_pool_was_stopped(file: DatabaseConfig) -> None:
    """Its next row is refused with PoolClosed, its end raises nothing, and its connection is closed."""
    for leave in (lambda rows: rows.aclose(), lambda rows: anext(rows)):
        pool = SQLPool(SQLPoolSettings(max_connections=1))
        rows = pool.stream_async(file, f"{NUMBERS} SELECT i FROM n", batch=1)
        assert await anext(rows) == (1,)  # type: ignore[call-overload]
        with pytest.raises(LeaseLeaked, match=r"test_sqlite_tasks\.py"):
            await pool.stop_async(0.05)
        with suppress(PoolClosed):
            await leave(rows)
        pool.start()
        assert await pool.execute_query_async(file, "SELECT 1") == [(1,)]
        await pool.stop_async(10)


async def test_calls_given_up_before_their_turn_cost_no_connection(file: DatabaseConfig) -> None:
    """Tasks cancelled at every point on their way to a thread leave both connections to others."""
    async with SQLPool(SQLPoolSettings(max_connections=2, checkout_timeout=20)) as pool:
        for ticks in range(200):
            tasks = [asyncio.create_task(pool.execute_query_async(file, "SELECT 1")) for _ in range(6)]
            for _ in range(ticks % 10):
                await asyncio.sleep(0)
            await end(tasks)
        await eventually_async(lambda: active(pool) == 0)
        assert await asyncio.gather(*(pool.execute_query_async(file, "SELECT 1") for _ in range(2))) == [[(1,)]] * 2


def test_a_loop_that_closes_meanwhile_leaves_its_connection_whole(file: DatabaseConfig) -> None:
    """An answer that nobody waits for any more ends no thread, and the connection is closed in the end."""
    release = threading.Event()
    connection = Connection(partial(sqlite3.connect, file.database, check_same_thread=False))
    thread = connection._thread

    async def abandon() -> None:
        await connection
        task = asyncio.create_task(connection._execute(release.wait, 20))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(abandon())
    release.set()
    serves = threading.Event()
    connection._tx.put_nowait((None, serves.set))
    assert serves.wait(20)
    asyncio.run(connection.close())
    eventually(lambda: not thread.is_alive())


def test_a_cancelled_connect_leaves_nothing_open(file: DatabaseConfig) -> None:
    """A connection that is opened for a task that was cancelled is closed, and its thread ends."""
    release = threading.Event()
    opened = []

    def connect() -> sqlite3.Connection:
        release.wait(20)
        opened.append(sqlite3.connect(file.database, check_same_thread=False))
        return opened[0]

    async def give_up() -> None:
        async def attempt() -> None:
            await connection

        task = asyncio.create_task(attempt())
        await eventually_async(connection._thread.is_alive)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    connection = Connection(connect)
    asyncio.run(give_up())
    release.set()
    eventually(lambda: not connection._thread.is_alive())
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


def test_aiosqlite_executes_in_its_threads_order() -> None:
    """The private names of aiosqlite that the pool relies on still mean what they did."""
    assert list(inspect.signature(aiosqlite.Connection._execute).parameters) == ["self", "fn", "args", "kwargs"]
    source = inspect.getsource(aiosqlite.core)
    assert "self._tx.put_nowait((future, function))" in source
    assert "if future:" in source
    assert "return _STOP_RUNNING_SENTINEL" in source
    assert "target=_connection_worker_thread, args=(self._tx,)" in source
    assert "self._conn._execute(fn" in inspect.getsource(aiosqlite.Cursor)
    made = aiosqlite.Connection(lambda: None, 64)  # type: ignore[arg-type, return-value]
    assert made._connection is None
    assert made._thread.daemon is False


async def test_tasks_cancelled_twice_leave_no_complaint(file: DatabaseConfig) -> None:
    """A second cancellation, which meets the closing of the connection, leaves no task that nobody ever ends."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with SQLPool(SQLPoolSettings(max_connections=4, checkout_timeout=20)) as pool:

        async def work() -> None:
            async with pool.transaction(file, readonly=True) as connection:
                executing.set()
                await connection.execute(text(ENDLESS))

        for turns in range(24):
            executing = asyncio.Event()
            task = asyncio.create_task(work())
            await executing.wait()
            for again in range(2):
                for _ in range(turns // (5 if again else 1) % 6):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait({task}, timeout=20)
            assert task.cancelled()
        await eventually_async(lambda: active(pool) == 0)
    del task
    gc.collect()  # what is dropped unfinished complains now
    assert complaints == []
