"""Event loops that stand still between two runs, with tasks that wait for a connection."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.pools.core.waiters import TaskWaiter
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings
from tests.support.waiting import eventually, eventually_async


@pytest.fixture
def one() -> Iterator[SQLPool]:
    """Return a pool of one connection."""
    with SQLPool(SQLPoolSettings(max_connections=1, min_connections=0, checkout_timeout=20)) as pool:
        yield pool


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return an event loop that runs only when a test has it run."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def ask(pool: SQLPool, database: DatabaseConfig, loop: asyncio.AbstractEventLoop) -> "asyncio.Task[int]":
    """Have a task ask for an answer, and the loop stand still as soon as it waits for a connection."""

    async def answer() -> int:
        rows = await pool.execute_query_async(database, "SELECT 1 AS one")
        return int(rows[0].one)

    async def until_it_waits() -> None:
        await eventually_async(lambda: any(bucket._waiters for bucket in pool._buckets()))

    task = loop.create_task(answer())
    loop.run_until_complete(until_it_waits())
    return task


def test_who_waits_in_a_loop_that_stands_still_keeps_nothing_from_threads(
    one: SQLPool, database: DatabaseConfig, loop: asyncio.AbstractEventLoop
) -> None:
    """A connection that is given back goes to the threads that come, and to the task once its loop goes on."""
    bucket = one._sync(database).bucket
    entry = bucket.checkout()
    task = ask(one, database, loop)
    bucket.give_back(entry)
    for _ in range(20):
        assert 2 == one.execute_query(database, "SELECT 2 AS two", timeout=10)[0].two

    assert 1 == loop.run_until_complete(asyncio.wait_for(task, 15))
    loop.run_until_complete(one.stop_async())


def test_a_place_that_becomes_free_is_not_kept_by_a_loop_that_stands_still(
    one: SQLPool, database: DatabaseConfig, loop: asyncio.AbstractEventLoop
) -> None:
    """A connection that is discarded is replaced for the threads that come, and for the task once its loop goes on."""
    bucket = one._sync(database).bucket
    entry = bucket.checkout()
    task = ask(one, database, loop)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(one.execute_query, database, "SELECT 2 AS two", timeout=10)
        eventually(lambda: len(bucket._waiters) == 1 + (database.backend == "sqlite"))
        bucket.discard(entry)
        assert 2 == waiting.result(15)[0].two

    assert 1 == loop.run_until_complete(asyncio.wait_for(task, 15))
    loop.run_until_complete(one.stop_async())


def test_a_connection_that_a_standing_loop_was_making_makes_room(
    one: SQLPool, postgres: DatabaseConfig, loop: asyncio.AbstractEventLoop
) -> None:
    """A loop that stops half-way through connecting loses the place to the threads, and the task is served later."""
    task = ask(one, postgres, loop)  # nobody has a connection: one is being made
    assert [False] == [entry.made for bucket in one._buckets() for entry in bucket._entries]
    for _ in range(3):
        assert 2 == one.execute_query(postgres, "SELECT 2 AS two", timeout=10)[0].two

    assert 1 == loop.run_until_complete(asyncio.wait_for(task, 15))
    assert 1 >= sum(len(bucket._entries) for bucket in one._buckets())
    loop.run_until_complete(one.stop_async())


def test_nothing_is_connected_for_a_loop_that_stands_still(
    pool: SQLPool, database: DatabaseConfig, loop: asyncio.AbstractEventLoop
) -> None:
    """Whoever waits there does not have the pool fill up with connections."""
    bucket = pool._sync(database).bucket
    leased = [bucket.checkout() for _ in range(4)]
    task = ask(pool, database, loop)
    for entry in leased:
        bucket.discard(entry)
    for _ in range(20):
        pool.execute_query(database, "SELECT 2 AS two", timeout=10)

    assert 1 == sum(len(bucket._entries) for bucket in pool._buckets())
    assert 1 == loop.run_until_complete(asyncio.wait_for(task, 15))
    loop.run_until_complete(pool.stop_async())


def test_a_loop_that_stands_still_gathers_no_wake_ups(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a waiter there is woken, its loop has to do it once."""
    scheduled: list[object] = []

    async def wait() -> TaskWaiter[int]:
        return TaskWaiter()

    waiter = loop.run_until_complete(wait())
    monkeypatch.setattr(loop, "call_soon_threadsafe", scheduled.append)

    assert not any(waiter.wake() for _ in range(100))
    assert 1 == len(scheduled)
