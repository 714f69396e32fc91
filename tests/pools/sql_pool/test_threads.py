"""The pool's own threads: at the system's limit, and when Ctrl-C comes as one is started or a lease ends."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from app.pools.errors import DatabaseUnavailable, DatabaseUnreachable
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, cleaning, get_sqlite_config
from app.pools.sql_pool.connections import ConnectionBucket
from app.pools.sql_pool.threads import Call
from tests.support.descriptors import open_files
from tests.support.interrupts import break_off
from tests.support.threads import interrupt_start, refuse_threads
from tests.support.waiting import eventually, eventually_async

MEMORY = get_sqlite_config(":memory:")


@pytest.fixture
def pair() -> Iterator[SQLPool]:
    """Return a pool of two connections."""
    with SQLPool(SQLPoolSettings(max_connections=2, min_connections=0, checkout_timeout=20)) as pool:
        yield pool


@contextmanager
def no_threads(name: str) -> Iterator[None]:
    """Have threads whose names begin so fail to start within the block."""
    with pytest.MonkeyPatch.context() as patched:
        refuse_threads(patched, name)
        yield


def lends_each_connection_once(bucket: ConnectionBucket) -> bool:
    """Say whether a bucket of two has two connections to lend, and not one of them twice."""
    leased = [bucket.checkout(), bucket.checkout()]
    over = not bucket._idle
    for entry in leased:
        bucket.give_back(entry)
    return over and leased[0].resource.raw is not leased[1].resource.raw


def test_a_call_that_was_called_off_is_not_done() -> None:
    """A call is done or called off, whichever comes first, and its future says which."""
    done: list[int] = []
    one, other = Call(lambda: done.append(1)), Call(lambda: done.append(2))
    assert one.cancel()
    one()
    other()
    assert not other.cancel()

    assert [2] == done
    assert one.cancelled()
    assert other.result(0) is None


async def test_a_stream_that_no_thread_can_serve_gives_its_connection_back_once(pair: SQLPool) -> None:
    """Its connection is not lent to two, although the end of the stream is queued, and done again."""
    stream = pair.stream_async(MEMORY, "SELECT 1")
    with no_threads("poolwire-sql_"), pytest.raises(DatabaseUnavailable, match="new thread"):
        await anext(stream)
    assert lends_each_connection_once(pair._sync(MEMORY).bucket)
    await asyncio.gather(*(pair.execute_query_async(MEMORY, "SELECT 1") for _ in range(4)))

    assert lends_each_connection_once(pair._sync(MEMORY).bucket)
    await pair.stop_async()


def test_who_cannot_connect_waits_for_what_others_have(pair: SQLPool) -> None:
    """At the limit of threads a second caller gets the first one's connection, once it is given back."""
    with pair.connection(MEMORY) as lease, no_threads("poolwire-sql-connect"), ThreadPoolExecutor(1) as other:
        lease.execute(text("SELECT 1"))
        waiting = other.submit(pair.execute_query, MEMORY, "SELECT 2 AS two")
        eventually(lambda: pair._sync(MEMORY).bucket._waiters)
        lease.close()

        assert 2 == waiting.result(10)[0].two


def test_who_discards_a_connection_is_not_told_that_the_next_one_cannot_be_made() -> None:
    """The one who waits is, at once: there is nothing to wait for, and soon there may be again."""
    with SQLPool(SQLPoolSettings(max_connections=1, min_connections=0)) as pool, ThreadPoolExecutor(1) as other:
        bucket = pool._sync(MEMORY).bucket
        entry = bucket.checkout()
        waiting = other.submit(pool.execute_query, MEMORY, "SELECT 1")
        eventually(lambda: bucket._waiters)
        with no_threads("poolwire-sql-connect"):
            began = time.monotonic()
            bucket.discard(entry)
            with pytest.raises(DatabaseUnavailable, match="nothing can connect to sqlite::memory:: can't start"):
                waiting.result(10)
            assert time.monotonic() - began < 4  # the timeout is 5

        assert 1 == pool.execute_query(MEMORY, "SELECT 1 AS one")[0].one


async def test_a_shortage_of_threads_is_waited_out(tmp_path: Path) -> None:
    """A task's lease whose connection needs a thread is served once it can have one, and else told what is missing."""
    config = get_sqlite_config(tmp_path / "x.db")

    async def lease() -> object:
        async with pool.connection(config) as connection:
            return (await connection.execute(text("SELECT 1"))).scalar()

    def failures() -> int:
        return sum(figures["connect_failures"] for figures in pool.get_stats()["pools"].values())

    with SQLPool(SQLPoolSettings(max_connections=1, min_connections=0, checkout_timeout=20)) as pool:
        with no_threads("poolwire-aiosqlite"):
            waiting = asyncio.create_task(lease())
            await eventually_async(failures)
        assert 1 == await waiting
        await pool.stop_async()
    with SQLPool(SQLPoolSettings(max_connections=1, min_connections=0, checkout_timeout=0.3)) as pool:
        missing = r"can't start new thread .*Raise the limit of threads \(ulimit -u"
        with no_threads("poolwire-aiosqlite"), pytest.raises(DatabaseUnreachable, match=missing):
            await lease()
        await pool.stop_async()


def names_of_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("sql", ["SELECT 1", "PRAGMA cache_size = 5"], ids=["idle", "with residue"])
async def test_a_connection_of_a_tasks_lease_needs_no_thread_to_be_closed(tmp_path: Path, sql: str) -> None:
    """At the limit of threads its own one closes it and ends, for the housekeeper and at the end of a lease."""
    config = get_sqlite_config(tmp_path / "x.db")
    with SQLPool(SQLPoolSettings(max_connections=1, min_connections=0, max_idle_time=0.01)) as pool:
        with no_threads("poolwire-sql-close"):
            async with pool.connection(config) as lease:
                await lease.execute(text(sql))
                assert "poolwire-aiosqlite" in names_of_threads()
            await eventually_async(lambda: pool.sweep() or "poolwire-aiosqlite" not in names_of_threads())
        await eventually_async(lambda: not open_files("x.db"))

        async with pool.connection(config) as lease:
            assert 1 == (await lease.execute(text("SELECT 1"))).scalar()
        await pool.stop_async()


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_start_costs_no_place(begun: bool) -> None:
    """Ctrl-C as the thread that connects is started is the caller's, and the next call connects."""
    with SQLPool(SQLPoolSettings(max_connections=1, min_connections=0, checkout_timeout=2)) as pool:
        with pytest.MonkeyPatch.context() as patched:
            interrupt_start(patched, "poolwire-sql-connect", begun=begun)
            with pytest.raises(KeyboardInterrupt):
                pool.execute_query(MEMORY, "SELECT 1")

            assert 1 == pool.execute_query(MEMORY, "SELECT 1 AS one")[0].one


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
@pytest.mark.filterwarnings("ignore:a lease of .* was never ended:ResourceWarning")
def test_a_lost_lease_frees_its_place_without_the_garbage_collector(pair: SQLPool, database: DatabaseConfig) -> None:
    """What an interrupt made its lessee lose is found at once, whether an Engine had the connection or has it."""
    bucket = pair._sync(database).bucket
    with pair.connection(database) as connection:
        connection.execute(text("SELECT 1"))
    assert len(bucket._entries) == 1
    bucket.checkout()  # and not kept
    eventually(lambda: not bucket._entries)
    proxy = pair.engine(database).raw_connection()
    proxy._finalizer.detach()  # type: ignore[attr-defined]  # as when its call is interrupted
    del proxy

    eventually(lambda: not bucket._entries)


@pytest.mark.usefixtures("no_garbage_collector")
def test_an_interrupted_end_costs_no_place(postgres: DatabaseConfig) -> None:
    """Ctrl-C as the end of a lease is given its deadline closes the connection, whose transaction is open."""
    with SQLPool(SQLPoolSettings(max_connections=1, min_connections=0, checkout_timeout=2)) as pool:

        def step() -> None:
            with pool.connection(postgres) as connection:
                connection.execute(text("SELECT 1"))

        step()
        reached = 0
        while break_off(step, KeyboardInterrupt, cleaning, reached):
            reached += 1
            step()
            assert reached < 2000
        assert reached


def test_threads_of_the_same_pool_lease_different_connections(pool: SQLPool, database: DatabaseConfig) -> None:
    """Engine leases that begin at the same moment in several threads do not take each other's connection."""
    gate = threading.Barrier(4)

    def lease() -> int:
        with pool.engine(database).connect() as connection:
            gate.wait(30)
            return id(connection.connection.dbapi_connection)

    with ThreadPoolExecutor(4) as threads:
        for _ in range(25):
            leased = [threads.submit(lease) for _ in range(4)]
            assert 4 == len({each.result(30) for each in leased})
