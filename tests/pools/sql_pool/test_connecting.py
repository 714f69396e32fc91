"""How connections come and go: which driver makes them, and that many do not come or go at the same moment."""

import asyncio
import itertools
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from socket import socket

import pytest

from app.pools.errors import DatabaseUnavailable, DatabaseUnreachable, MissingDriver
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_postgresql_config, get_sqlite_config
from app.pools.sql_pool.attempts import pauses
from app.pools.sql_pool.rows import Row
from tests.support.descriptors import shortage
from tests.support.waiting import eventually_async

MEGABYTES = 1024 * 1024
NO_DESCRIPTOR = r"cannot be used now: no file descriptor is left to load its driver with\. Raise the limit"


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_missing_driver_is_an_error_that_names_the_extra(
    pool: SQLPool, postgres: DatabaseConfig, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call and lease that needs it says what to install."""
    monkeypatch.setitem(sys.modules, driver, None)
    monkeypatch.delitem(sys.modules, f"app.pools.sql_pool.{driver}_driver", raising=False)

    async def call() -> None:
        await pool.execute_query_async(postgres, "SELECT 1")

    async def lease() -> None:
        async with pool.connection(postgres):
            pass

    def lease_in_thread() -> None:
        with pool.connection(postgres):
            pass

    tasks = [lambda: asyncio.run(call()), lambda: asyncio.run(lease())]
    threads = [lambda: pool.execute_query(postgres, "SELECT 1"), lease_in_thread]
    for use in threads if driver == "psycopg" else tasks:
        with pytest.raises(MissingDriver, match=rf"{driver}: pip install 'poolwire\[postgres\]'"):
            use()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_driver_for_which_no_descriptor_is_left_is_loaded_later(
    pool: SQLPool, postgres: DatabaseConfig, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first use of PostgreSQL in a process without descriptors says so, and the next one works."""
    monkeypatch.delitem(sys.modules, f"app.pools.sql_pool.{driver}_driver", raising=False)
    with asyncio.Runner() as runner:
        runner.get_loop()  # which takes descriptors, too

        def ask() -> list[Row]:
            if driver == "psycopg":
                return pool.execute_query(postgres, "SELECT 1")
            return runner.run(pool.execute_query_async(postgres, "SELECT 1"))

        with shortage(), pytest.raises(DatabaseUnavailable, match=NO_DESCRIPTOR):
            ask()
        assert [(1,)] == ask()


def test_a_library_that_no_descriptor_is_left_for_is_not_called_missing(
    pool: SQLPool, postgres: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system's loader cannot open psycopg's library nobody is told to install it, and the next use works."""

    class Loader:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "psycopg":
                raise ImportError("libpq.so: cannot open shared object file: Too many open files")

    monkeypatch.delitem(sys.modules, "app.pools.sql_pool.psycopg_driver", raising=False)
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, "psycopg", raising=False)
        patched.setattr(sys, "meta_path", [Loader(), *sys.meta_path])
        with pytest.raises(DatabaseUnavailable, match=NO_DESCRIPTOR):
            pool.execute_query(postgres, "SELECT 1")

    assert [(1,)] == pool.execute_query(postgres, "SELECT 1")


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("free", [0, 1, 2])
async def test_a_shortage_of_descriptors_is_waited_out(
    pool: SQLPool, database: DatabaseConfig, free: int, asynchronous: bool
) -> None:
    """A call that finds none for its connection is not refused: it is served once there is one."""

    async def ask() -> list[Row]:
        if asynchronous:
            return await pool.execute_query_async(database, "SELECT 1")
        return await asyncio.to_thread(pool.execute_query, database, "SELECT 1")

    def failures() -> int:
        return sum(figures["connect_failures"] for figures in pool.get_stats()["pools"].values())

    await ask()  # the drivers read files of their own at their first use
    pool.engine(database).dispose()
    await pool.async_engine(database).dispose()
    with shortage(free) as end:
        asking = asyncio.create_task(ask())
        await eventually_async(lambda: failures() or asking.done())
        end()
    assert await asking == [(1,)]
    await pool.stop_async()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_shortage_of_descriptors_has_its_own_advice(
    kind: str, asynchronous: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whose process has none left is told so, and to raise the limit, not to look after a server."""
    config = get_sqlite_config(tmp_path / "x.db") if kind == "sqlite" else request.getfixturevalue("postgres")
    with SQLPool(SQLPoolSettings(checkout_timeout=0.5)) as pool:

        async def ask() -> None:
            if asynchronous:
                await pool.execute_query_async(config, "SELECT 1")
            else:
                pool.execute_query(config, "SELECT 1")

        # The drivers read files of their own at their first use; what that opened is kept in use.
        with pool.connection(config):
            async with pool.connection(config):
                with shortage(1), pytest.raises(DatabaseUnreachable) as caught:
                    await ask()
        await pool.stop_async()

    assert "Too many open files" in str(caught.value)
    assert "Raise the limit (ulimit -n" in str(caught.value)
    assert "server runs" not in str(caught.value)


async def test_a_file_that_others_have_locked_has_its_own_advice(tmp_path: Path) -> None:
    """Whose SQLite file is locked is told to find out by whom: there is no server that could run."""
    config = get_sqlite_config(tmp_path / "x.db", busy_timeout=0.05)
    with closing(sqlite3.connect(config.database, isolation_level=None)) as other:
        other.execute("CREATE TABLE numbers (number)")
        other.execute("BEGIN EXCLUSIVE")
        with SQLPool(SQLPoolSettings(checkout_timeout=0.3)) as pool:
            for call in (
                lambda: asyncio.to_thread(pool.execute_query, config, "SELECT 1"),
                lambda: pool.execute_query_async(config, "SELECT 1"),
            ):
                with pytest.raises(DatabaseUnreachable, match=r"database is locked .*Find out who keeps the file"):
                    await call()
            with pytest.raises(DatabaseUnavailable, match=r"database is locked\. Find out who keeps the file"):
                pool.warm_up(config)
            await pool.stop_async()


def test_attempts_to_connect_are_apart_by_random_and_growing_pauses() -> None:
    """From a twentieth of a second they double to a second, each half as long to one and a half times as long."""
    runs = [list(itertools.islice(pauses(), 8)) for _ in range(50)]
    for pause, base in zip(zip(*runs, strict=True), (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0), strict=True):
        assert all(0.5 * base <= each <= 1.5 * base for each in pause)
        assert max(pause) - min(pause) > 0.2 * base


async def test_connections_made_together_do_not_end_together(postgres: DatabaseConfig) -> None:
    """Each lifetime is up to a tenth shorter than the setting, at random, for threads and for tasks."""
    with SQLPool(SQLPoolSettings(max_connections=8, min_connections=8, max_lifetime=1000)) as pool:
        pool.warm_up(postgres)
        other = replace(postgres, application_name="others")  # for the first ones have taken all places
        await asyncio.gather(*(pool.execute_query_async(other, "SELECT pg_sleep(0.2)") for _ in range(8)))
        for side in (pool._sync(postgres), pool._async(other)):
            left = [entry.expires_at - time.monotonic() for entry in side.bucket._entries]
            assert len(left) == 8
            assert all(850 < seconds <= 1000 for seconds in left)
            assert max(left) - min(left) > 1
        await pool.stop_async()


def resident() -> int:
    """Return how much memory this process has, in bytes."""
    with open("/proc/self/statm") as statistics:
        return int(statistics.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="the memory is read from /proc")
async def test_a_stream_needs_little_memory_whatever_it_yields(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """A hundred megabytes pass through less than twenty-five, with both drivers."""
    sql = "SELECT repeat('x', 1000) AS line FROM generate_series(1, 100000)"
    pool.execute_query(postgres, "SELECT 1")
    await pool.execute_query_async(postgres, "SELECT 1")
    before, most, count = resident(), 0, 0
    for count, _ in enumerate(pool.stream(postgres, sql, batch=500), 1):
        if not count % 1000:
            most = max(most, resident())
    assert count == 100_000
    async for _ in pool.stream_async(postgres, sql, batch=500):
        count += 1
        if not count % 1000:
            most = max(most, resident())
    assert count == 200_000
    assert most - before < 25 * MEGABYTES
    await pool.stop_async()


async def test_who_cannot_reach_a_server_is_told_by_the_drivers_error() -> None:
    """DatabaseUnreachable has the last attempt's failure as its cause, whose frames, with the password, are cut off."""
    with socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        config = get_postgresql_config("127.0.0.1", bound.getsockname()[1], "any", "ada", "secret")
        with SQLPool(SQLPoolSettings(checkout_timeout=0.2)) as pool:
            with pytest.raises(DatabaseUnreachable) as caught:
                pool.execute_query(config, "SELECT 1")
            with pytest.raises(DatabaseUnreachable) as caught_async:
                await pool.execute_query_async(config, "SELECT 1")
            await pool.stop_async()
    for error in (caught.value, caught_async.value):
        assert error.__cause__ is not None
        assert str(getattr(error.__cause__, "orig", None) or error.__cause__).splitlines()[0] == error.reason
        assert error.__cause__.__traceback__ is None
