"""Many callers on few connections of a real pool: what is left when some fail, some are cancelled and some nest."""

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import providers
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.containers import AgentContainer, Lifecycle, Provide, Resources, inject
from app.pools.sql_pool import get_sqlite_config

CALLERS, CONNECTIONS = 50, 10
NESTED, WORKERS = 5_000, 5

INSERT = text("INSERT INTO calls VALUES (:caller)")


class Failed(Exception):
    """A call failed on purpose, after it wrote."""


@inject
def write(caller: int, db: Connection = Provide["databases.main"]) -> None:
    db.execute(INSERT, {"caller": caller})
    if caller % 5 == 0:
        raise Failed
    db.commit()


@inject
async def write_async(caller: int, db: AsyncConnection = Provide["databases.main"]) -> None:
    await db.execute(INSERT, {"caller": caller})
    await asyncio.sleep(0)
    if caller % 5 == 0:
        raise Failed
    await db.commit()


@inject
def outer(caller: int, db: Connection = Provide["databases.main"]) -> None:
    """Have an inner call write, and write as well, each in a transaction of its own."""
    try:
        write(caller)
    finally:
        db.execute(INSERT, {"caller": -1})
        db.commit()


@inject
async def outer_async(caller: int, db: AsyncConnection = Provide["databases.main"]) -> None:
    try:
        await write_async(caller)
    finally:
        await db.execute(INSERT, {"caller": -1})
        await db.commit()


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SQL_POOL_MAX_CONNECTIONS", str(CONNECTIONS))
    main = get_sqlite_config(tmp_path / "main.db")
    return AgentContainer(resources=providers.Object(Resources(databases={"main": main})))


def create_table(container: Any) -> None:
    container.databases.main.handle().execute_query("CREATE TABLE calls (caller INTEGER)")


def written(container: Any) -> list[int]:
    """What has been committed, in order; nothing may be checked out any more."""
    metrics = container.sql_pool().get_stats()["metrics"]
    assert 0 == metrics["active_connections"]
    assert metrics["total_connections"] <= 2 * CONNECTIONS  # at most ten of each side
    rows = container.databases.main.handle().execute_query("SELECT caller FROM calls ORDER BY caller")
    return [row[0] for row in rows]


def in_threads(calls: Iterator[int], call: Callable[[int], None], threads: int) -> list[BaseException]:
    """Make the calls in so many threads and return what was raised."""
    raised: list[BaseException] = []
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(calls, None)
            if number is None:
                return
            try:
                call(number)
            except BaseException as error:  # noqa: BLE001 - returned to the test
                raised.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    return raised


async def in_tasks(calls: Iterator[int], call: Callable[[int], Any], tasks: int) -> list[BaseException]:
    """Await the calls in so many tasks and return what was raised."""
    raised: list[BaseException] = []

    async def work() -> None:
        for number in calls:
            try:
                await call(number)
            except Failed as error:
                raised.append(error)

    await asyncio.gather(*(work() for _ in range(tasks)))
    return raised


def committed(callers: int) -> list[int]:
    return [caller for caller in range(callers) if caller % 5]


async def test_fifty_callers_share_ten_connections(container: Any) -> None:
    """Threads and tasks: what succeeded is there, what failed is rolled back, nothing is left checked out."""
    async with Lifecycle(container, modules=[sys.modules[__name__]]):
        create_table(container)
        raised = await asyncio.to_thread(in_threads, iter(range(10 * CALLERS)), write, CALLERS)
        assert [Failed] * (2 * CALLERS) == [type(error) for error in raised]
        assert committed(10 * CALLERS) == written(container)

        container.databases.main.handle().execute_query("DELETE FROM calls")
        failed = await in_tasks(iter(range(10 * CALLERS)), write_async, CALLERS)
        assert 2 * CALLERS == len(failed)
        assert committed(10 * CALLERS) == written(container)


async def test_five_hundred_cancellations_leave_nothing_checked_out(container: Any) -> None:
    """Wherever calls are cancelled, waiting, checking out, writing or giving back, each has committed or has not."""
    async with Lifecycle(container, modules=[sys.modules[__name__]]):
        create_table(container)
        results: dict[int, Any] = {}
        cancelled = 0
        for first in range(0, 1_000, 100):
            tasks = {n: asyncio.create_task(write_async(n)) for n in range(first, first + 100)}
            for task in random.sample(list(tasks.values()), 50):
                for _ in range(random.randrange(20)):
                    await asyncio.sleep(0)
                cancelled += task.cancel() or task.done()
            done = await asyncio.gather(*tasks.values(), return_exceptions=True)
            results |= dict(zip(tasks, done, strict=True))
            rows = written(container)
            kinds = {type(result) for result in results.values()}
            assert kinds <= {type(None), Failed, asyncio.CancelledError}
            succeeded = {number for number, result in results.items() if result is None}
            failed = {number for number, result in results.items() if isinstance(result, Failed)}
            assert len(rows) == len(set(rows))
            assert succeeded <= set(rows)  # a cancellation after the commit cannot undo it
            assert not failed & set(rows)
            assert not {number for number in rows if number % 5 == 0}
        assert 500 == cancelled


async def test_five_thousand_nested_calls_leave_nothing_checked_out(container: Any) -> None:
    """An inner call commits or is rolled back alone, threads and tasks, and the outer one with its own connection."""
    half = NESTED // 2
    async with Lifecycle(container, modules=[sys.modules[__name__]]):
        create_table(container)
        raised = await asyncio.to_thread(in_threads, iter(range(half)), outer, WORKERS)
        assert [Failed] * (half // 5) == [type(error) for error in raised]
        assert [-1] * half + committed(half) == written(container)

        container.databases.main.handle().execute_query("DELETE FROM calls")
        failed = await in_tasks(iter(range(half)), outer_async, WORKERS)
        assert half // 5 == len(failed)
        assert [-1] * half + committed(half) == written(container)
