"""What users of the SQL pool see when many write to one SQLite file, and when a writer dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.pools.errors import ConnectionRefused, QueryTimeout
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config, writers
from tests.support.children import in_child
from tests.support.waiting import eventually, eventually_async

WRITERS = 8
ROUNDS = 25

CHILD = """
import sys
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from app.pools.sql_pool import SQLPool, get_sqlite_config
config = get_sqlite_config(sys.argv[1], busy_timeout=30)
with SQLPool() as pool:
    for _ in range(int(sys.argv[2])):
        with pool.transaction(config) as connection:
            value = connection.execute(text("SELECT value FROM counter")).scalar_one()
            connection.execute(text("UPDATE counter SET value = :value"), {"value": value + 1})
"""

HOLDER = """
import sys, time
from app.pools.sql_pool import SQLPool, get_sqlite_config
pool = SQLPool()
lease = pool.transaction(get_sqlite_config(sys.argv[1]))
connection = lease.__enter__()
connection.exec_driver_sql("UPDATE counter SET value = 1000")
print("writing", flush=True)
time.sleep(60)
"""


@pytest.fixture
def counter(tmp_path: Path) -> DatabaseConfig:
    config = get_sqlite_config(tmp_path / "counter.db", busy_timeout=30)
    with SQLPool() as pool:
        pool.execute_query(config, "CREATE TABLE counter (value INTEGER)")
        pool.execute_query(config, "INSERT INTO counter VALUES (0)")
    return config


@contextlib.contextmanager
def another_writer(config: DatabaseConfig) -> Iterator[subprocess.Popen[str]]:
    """Have another process in the middle of a transaction that writes, until it is killed at the end of the block."""
    command = [sys.executable, "-c", HOLDER, config.database]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            yield writer
        finally:
            writer.kill()


def value(pool: SQLPool, config: DatabaseConfig) -> int:
    found: int = pool.execute_query(config, "SELECT value FROM counter")[0].value
    return found


def test_threads_that_read_modify_write_lose_nothing(counter: DatabaseConfig) -> None:
    """Eight threads add to one number: no "locked", no lost update."""
    with SQLPool(SQLPoolSettings(checkout_timeout=30)) as pool, ThreadPoolExecutor(WRITERS) as threads:

        def add() -> None:
            for _ in range(ROUNDS):
                with pool.transaction(counter) as connection:
                    seen = connection.execute(text("SELECT value FROM counter")).scalar_one()
                    connection.execute(text("UPDATE counter SET value = :value"), {"value": seen + 1})

        for writer in [threads.submit(add) for _ in range(WRITERS)]:
            writer.result(60)

        assert value(pool, counter) == WRITERS * ROUNDS


async def test_tasks_that_read_modify_write_lose_nothing(counter: DatabaseConfig) -> None:
    """Eight tasks and eight threads at once, the same."""
    pool = SQLPool(SQLPoolSettings(checkout_timeout=30))

    async def add() -> None:
        for _ in range(ROUNDS):
            async with pool.transaction(counter) as connection:
                seen = (await connection.execute(text("SELECT value FROM counter"))).scalar_one()
                await connection.execute(text("UPDATE counter SET value = :value"), {"value": seen + 1})

    async def write() -> None:
        for _ in range(ROUNDS):
            await pool.execute_query_async(counter, "UPDATE counter SET value = value + 1")

    await asyncio.gather(*(add() for _ in range(WRITERS)), *(write() for _ in range(WRITERS)))

    assert value(pool, counter) == 2 * WRITERS * ROUNDS
    await pool.stop_async()


def test_processes_that_read_modify_write_lose_nothing(counter: DatabaseConfig) -> None:
    """Eight processes add to one number: no "locked", no lost update."""
    command = [sys.executable, "-c", CHILD, counter.database, str(ROUNDS)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(WRITERS)]
    complaints = [writer.communicate(timeout=90)[1] for writer in writers]

    with SQLPool() as pool:
        assert complaints == [""] * WRITERS
        assert value(pool, counter) == WRITERS * ROUNDS


def test_a_writer_that_is_killed_lets_the_others_write(counter: DatabaseConfig) -> None:
    """The writer lock of a process that dies in the middle of a transaction is free, and its work undone."""
    with another_writer(counter) as writer:
        writer.kill()

    with SQLPool() as pool:
        pool.execute_query(counter, "UPDATE counter SET value = value + 1")
        assert value(pool, counter) == 1


LOCKED_BY_US = r"database is locked.*held for.*raise busy_timeout"
LOCKED_BY_OTHERS = r"database is locked.*another process.*raise busy_timeout"


def test_who_waits_too_long_for_the_writer_is_told_who_writes(tmp_path: Path) -> None:
    """A writer that cannot come to write in time gets "database is locked", who writes, and the setting to raise."""
    config = get_sqlite_config(tmp_path / "x.db", busy_timeout=0.1)
    with SQLPool() as pool:
        pool.execute_query(config, "CREATE TABLE notes (body TEXT)")
        with pool.transaction(config), pytest.raises(sqlite3.OperationalError, match=LOCKED_BY_US):
            pool.execute_query(config, "INSERT INTO notes VALUES ('x')")


def test_who_waits_too_long_for_another_process_is_told_so(tmp_path: Path) -> None:
    """The same when another process writes, of which no place is known."""
    config = get_sqlite_config(tmp_path / "x.db", busy_timeout=0.1)
    with SQLPool() as pool:
        pool.execute_query(config, "CREATE TABLE counter (value INTEGER)")
    with another_writer(config), SQLPool() as pool, pytest.raises(sqlite3.OperationalError, match=LOCKED_BY_OTHERS):
        pool.execute_query(config, "UPDATE counter SET value = 5")


def forked(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked child; return its exit status, 0 if nothing was raised."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_writes_with_connections_of_its_own(counter: DatabaseConfig) -> None:
    """Parent and child write after a fork while nothing was leased, the parent's asyncio connections included."""
    with SQLPool() as pool:

        async def in_between() -> None:
            async with pool.transaction(counter) as connection:
                await connection.execute(text("UPDATE counter SET value = 10"))
            add = "UPDATE counter SET value = value + 1"
            assert forked(lambda: [pool.execute_query(counter, add) for _ in range(20)]) == 0
            for _ in range(20):
                await pool.execute_query_async(counter, add)

        asyncio.run(in_between())

        assert value(pool, counter) == 50


def test_a_child_forked_in_a_transaction_is_refused(counter: DatabaseConfig) -> None:
    """A file in use at the fork, whose locks SQLite would believe to hold in the child, is an error there."""

    def use() -> None:
        with pytest.raises(ConnectionRefused, match="was in use when this process was forked"):
            pool.execute_query(counter, "UPDATE counter SET value = 7")

    with SQLPool() as pool:
        with pool.transaction(counter) as connection:
            connection.execute(text("UPDATE counter SET value = 10"))
            assert forked(use) == 0

        assert value(pool, counter) == 10


def test_a_child_forked_during_a_pause_uses_the_database(counter: DatabaseConfig) -> None:
    """What a pause has set aside is closed before a fork, too, so that the file is not in use in the child."""
    with SQLPool() as pool:

        async def in_between() -> None:
            async with pool.connection(counter) as connection:
                await connection.execute(text("SELECT 1"))
            pool.execute_query(counter, "SELECT 1")
            pool.pause(counter)

            def use() -> None:
                pool.resume(counter)
                pool.execute_query(counter, "UPDATE counter SET value = 7")

            in_child(use)
            pool.resume(counter)

        asyncio.run(in_between())

        assert value(pool, counter) == 7


def test_a_child_forked_while_another_thread_opens_a_database(
    counter: DatabaseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that thread holds at the fork keeps the child, which does not have it, from nothing."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(writers.WriterLock):
        def __init__(self, label: str, path: str | None) -> None:
            begun.set()
            assert go_on.wait(60)
            super().__init__(label, path)

    def use() -> None:
        go_on.set()
        with SQLPool() as pool:
            pool.execute_query(counter, "UPDATE counter SET value = 7")

    monkeypatch.setattr(writers, "WriterLock", Slow)
    opening = threading.Thread(target=writers.writer_lock, args=("another", str(tmp_path / "another.db")), daemon=True)
    opening.start()
    try:
        assert begun.wait(10)
        in_child(use)
    finally:
        go_on.set()
        opening.join(10)


def test_a_cancelled_task_does_not_keep_the_writer_lock(counter: DatabaseConfig) -> None:
    """Tasks cancelled while they write, or wait to write, leave the database free for the next."""

    async def storm() -> None:
        pool = SQLPool(SQLPoolSettings(max_connections=4))

        async def write() -> None:
            async with pool.transaction(counter) as connection:
                await connection.execute(text("UPDATE counter SET value = value + 1"))
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(write()) for _ in range(40)]
        for task in tasks:
            await asyncio.sleep(0.003)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pool.execute_query_async(counter, "UPDATE counter SET value = -1")
        assert await pool.execute_query_async(counter, "SELECT value FROM counter") == [(-1,)]
        await pool.stop_async()

    asyncio.run(storm())


def test_a_statement_that_takes_too_long_is_interrupted(counter: DatabaseConfig) -> None:
    """timeout= ends a SQLite statement too, and leaves neither a thread nor a lease behind."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with SQLPool() as pool:
        pool.warm_up(counter)  # who has to connect first may find the time over
        before = threading.active_count()
        with pytest.raises(QueryTimeout):
            pool.execute_query(counter, endless, timeout=0.1)

        assert active(pool) == 0
        assert value(pool, counter) == 0
        eventually(lambda: threading.active_count() <= before + 2)


def test_a_cancelled_task_ends_its_statement(counter: DatabaseConfig) -> None:
    """Cancelling a task interrupts its SQLite statement, so that the thread and the connection are free for others."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    endless_rows = f"INSERT INTO counter SELECT i FROM ({endless.replace('count(*)', 'i')})"

    async def cancel() -> None:
        async with SQLPool(SQLPoolSettings(max_connections=1, checkout_timeout=20)) as pool:
            # In rounds: what one leaves in the event loop must not be waited for there in the next.
            for work in 5 * [
                lambda: pool.execute_query_async(counter, endless),
                lambda: pool.execute_query_async(counter, endless_rows),
                lambda: pool.execute_many_async(counter, endless_rows, [()]),
            ]:
                task = asyncio.create_task(work())
                await eventually_async(lambda: pool.get_stats()["metrics"]["active_connections"] == 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                # With one thread and one connection, this waits for both.
                assert await pool.execute_query_async(counter, "SELECT value FROM counter") == [(0,)]

    asyncio.run(cancel())


def test_a_cancelled_task_whose_turn_did_not_come_does_nothing(counter: DatabaseConfig) -> None:
    """A call that was still queued for its thread when its task was cancelled writes nothing."""

    async def cancel() -> None:
        async with SQLPool(SQLPoolSettings(max_connections=1, checkout_timeout=20)) as pool:
            endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
            first = asyncio.create_task(pool.execute_query_async(counter, endless))
            await eventually_async(lambda: pool.get_stats()["metrics"]["active_connections"] == 1)
            second = asyncio.create_task(pool.execute_query_async(counter, "UPDATE counter SET value = 5"))
            await asyncio.sleep(0)
            for task in (second, first):
                task.cancel()
            await asyncio.gather(first, second, return_exceptions=True)
            assert await pool.execute_query_async(counter, "SELECT value FROM counter") == [(0,)]

    asyncio.run(cancel())


def lend_writer(pool: SQLPool, config: DatabaseConfig) -> Callable[[], None]:
    """Have a thread hold the writer lock, and return what makes it let go."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with pool.transaction(config):
            held.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(20)

    def let_go() -> None:
        over.set()
        thread.join(20)

    return let_go


@pytest.fixture(params=["file", "memory"])
def numbers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[SQLPool, DatabaseConfig]]:
    """Return a pool of two connections, and a database with an empty table; nothing may be leased in the end."""
    database = ":memory:" if request.param == "memory" else tmp_path / "numbers.db"
    config = get_sqlite_config(database, busy_timeout=60)
    with SQLPool(SQLPoolSettings(max_connections=2, min_connections=2, checkout_timeout=20)) as pool:
        pool.warm_up(config)  # a database in memory lets nobody connect while somebody writes
        pool.execute_query(config, "CREATE TABLE numbers (number INTEGER)")
        yield pool, config
        eventually(lambda: active(pool) == 0)


def active(pool: SQLPool) -> int:
    found: int = pool.get_stats()["metrics"]["active_connections"]
    return found


@pytest.mark.parametrize("call", ["execute_query_async", "execute_many_async", "copy_rows_async"])
def test_a_task_cancelled_while_it_waits_to_write_writes_nothing(
    numbers: tuple[SQLPool, DatabaseConfig], call: str
) -> None:
    """Its call ends before the writer does, frees thread and connection at once, and the next call works."""
    pool, config = numbers
    insert = "INSERT INTO numbers VALUES (?)"

    async def cancel(number: int) -> None:
        let_go = lend_writer(pool, config)
        try:
            work = {
                "execute_query_async": lambda: pool.execute_query_async(config, insert, (number,)),
                "execute_many_async": lambda: pool.execute_many_async(config, insert, [(number,)]),
                "copy_rows_async": lambda: pool.copy_rows_async(config, "numbers", ["number"], [(number,)]),
            }[call]()
            task = asyncio.create_task(work)
            await eventually_async(lambda: active(pool) == 2)
            if number % 2:  # else it may not even have begun to wait
                await eventually_async(lambda: _waiting_to_write() == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await eventually_async(lambda: active(pool) == 1)
        finally:
            await asyncio.to_thread(let_go)
        assert await pool.execute_query_async(config, "SELECT * FROM numbers") == []
        await pool.execute_query_async(config, insert, (-1,))
        assert await pool.execute_query_async(config, "DELETE FROM numbers RETURNING number") == [(-1,)]

    async def repeat() -> None:
        for number in range(10):
            await cancel(number)
        await pool.stop_async()

    asyncio.run(repeat())


def _waiting_to_write() -> int:
    """Return how many threads stand in the writer lock's queue."""
    stacks = [traceback.extract_stack(frame) for frame in sys._current_frames().values()]
    return sum(stack[-1].name == "wait" and any(each.name == "checkout_for" for each in stack) for stack in stacks)


def test_a_timeout_ends_the_wait_to_write(numbers: tuple[SQLPool, DatabaseConfig]) -> None:
    """timeout= is for the whole call: who waits for the writer is told at its deadline, and never writes."""
    pool, config = numbers
    for number in range(3):
        pool.warm_up(config)
        let_go = lend_writer(pool, config)
        try:
            with pytest.raises(QueryTimeout):
                pool.execute_query(config, "INSERT INTO numbers VALUES (?)", (number,), timeout=0.05)
        finally:
            let_go()

    assert pool.execute_query(config, "SELECT * FROM numbers") == []
    pool.execute_query(config, "INSERT INTO numbers VALUES (7)", timeout=20)
    assert pool.execute_query(config, "SELECT * FROM numbers") == [(7,)]


def test_a_timeout_ends_the_wait_for_another_process(counter: DatabaseConfig) -> None:
    """The same when it is another process that writes."""
    with another_writer(counter) as writer:
        with SQLPool() as pool:
            pool.warm_up(counter)
            with pytest.raises(QueryTimeout):
                pool.execute_query(counter, "UPDATE counter SET value = 5", timeout=0.1)
        assert writer.poll() is None

    with SQLPool() as pool:
        assert value(pool, counter) == 0


def test_who_leaves_the_queue_of_writers_does_not_hold_up_the_next(numbers: tuple[SQLPool, DatabaseConfig]) -> None:
    """Of many that wait to write, those cancelled at random points never write, and all others do."""
    pool, config = numbers
    rounds = 60

    async def storm() -> None:
        generator = random.Random(7)
        tasks = []
        for number in range(rounds):
            write = pool.execute_query_async(config, "INSERT INTO numbers VALUES (?)", (number,))
            tasks.append(asyncio.create_task(write))
            await asyncio.sleep(generator.random() * 0.001)
            if number % 3 == 0:
                tasks[generator.randrange(len(tasks))].cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        written = {row.number for row in await pool.execute_query_async(config, "SELECT number FROM numbers")}
        finished = {number for number, end in enumerate(ends) if end == []}
        assert finished <= written
        assert not [end for end in ends if end != [] and not isinstance(end, asyncio.CancelledError)]
        await pool.stop_async()

    asyncio.run(storm())


def test_a_script_whose_snapshot_is_stale_says_what_happened(counter: DatabaseConfig) -> None:
    """A script that reads, and writes after another program did, is told so instead of "database is locked"."""
    with SQLPool() as pool, contextlib.closing(sqlite3.connect(counter.database, isolation_level=None)) as other:
        with contextlib.closing(pool.engine(counter).raw_connection()) as connection:
            driver = connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            driver.create_function("interfere", 0, lambda: other.execute("UPDATE counter SET value = 7").rowcount)

            with pytest.raises(sqlite3.OperationalError, match="read before another one wrote"):
                driver.executescript(
                    "BEGIN; SELECT value FROM counter; SELECT interfere(); UPDATE counter SET value = 8"
                )

        assert value(pool, counter) == 7


@pytest.fixture
def outsider(tmp_path: Path) -> Iterator[tuple[DatabaseConfig, sqlite3.Connection]]:
    """Return a database that is not waited for long, and a program that writes to it without the writer lock."""
    config = get_sqlite_config(tmp_path / "shared.db", busy_timeout=0.1)
    with SQLPool() as pool:
        pool.execute_query(config, "CREATE TABLE numbers (number INTEGER UNIQUE)")
    with contextlib.closing(sqlite3.connect(config.database, isolation_level=None)) as connection:
        yield config, connection


def assert_others_can_write(config: DatabaseConfig) -> None:
    """Write in another pool, from a thread and from a task: neither may find the writer lock taken."""

    async def write() -> None:
        async with SQLPool() as pool, pool.transaction(config) as connection:
            await connection.execute(text("INSERT INTO numbers VALUES (8)"))

    with SQLPool() as pool:
        pool.execute_query(config, "INSERT INTO numbers VALUES (7)")
        asyncio.run(write())
        assert pool.execute_query(config, "SELECT number FROM numbers ORDER BY 1") == [(7,), (8,)]


STORE: dict[str, Callable[[SQLPool, DatabaseConfig], object]] = {
    "execute_query": lambda pool, config: pool.execute_query(config, "INSERT INTO numbers VALUES (1)"),
    "execute_many": lambda pool, config: pool.execute_many(config, "INSERT INTO numbers VALUES (?)", [(1,)]),
    "copy_rows": lambda pool, config: pool.copy_rows(config, "numbers", ["number"], [(1,)]),
}


@pytest.mark.parametrize("call", STORE)
def test_a_call_that_finds_the_file_locked_lets_others_write(
    outsider: tuple[DatabaseConfig, sqlite3.Connection], call: str
) -> None:
    """Where a program without the writer lock holds the file, a failed call keeps nobody from writing after it."""
    config, other = outsider
    with SQLPool() as pool:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            STORE[call](pool, config)
        other.execute("COMMIT")

        assert_others_can_write(config)


def test_a_lease_that_finds_the_file_locked_lets_others_write(
    outsider: tuple[DatabaseConfig, sqlite3.Connection],
) -> None:
    """A lease whose transaction could not begin does not hold the writer lock until it is given back."""
    config, other = outsider
    with SQLPool() as pool, pool.connection(config) as lease:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="database is locked"):
            lease.execute(text("INSERT INTO numbers VALUES (1)"))
        other.execute("COMMIT")

        assert_others_can_write(config)


def test_a_transaction_that_sqlite_ends_itself_lets_others_write(tmp_path: Path) -> None:
    """After INSERT OR ROLLBACK has rolled back, others write at once."""
    config = get_sqlite_config(tmp_path / "shared.db", busy_timeout=0.1)
    with SQLPool() as pool:
        pool.execute_query(config, "CREATE TABLE numbers (number INTEGER UNIQUE)")
        with pytest.raises(sqlite3.IntegrityError):
            pool.execute_many(config, "INSERT OR ROLLBACK INTO numbers VALUES (?)", [(1,), (1,)])

        assert_others_can_write(config)


def test_a_cursor_of_a_closed_connection_does_not_keep_others_from_writing(
    outsider: tuple[DatabaseConfig, sqlite3.Connection],
) -> None:
    """What is executed after close() fails without the writer lock, which nobody could give back."""
    config, _ = outsider
    with SQLPool() as pool, contextlib.closing(pool.engine(config).raw_connection()) as lease:
        connection = lease.driver_connection
        assert connection is not None
        cursor = connection.cursor()
        connection.close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            cursor.execute("INSERT INTO numbers VALUES (1)")

        assert_others_can_write(config)
