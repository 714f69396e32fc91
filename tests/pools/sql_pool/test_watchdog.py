"""The watchdog that ends calls at their deadline, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from app.pools.errors import ConfigError, DatabaseUnavailable
from app.pools.sql_pool import DatabaseConfig, SQLPool, watchdog
from app.pools.sql_pool.embedded import EmbeddedPostgres
from app.pools.sql_pool.watchdog import GRACE, Cutoff, Watch, remind
from tests.support.threads import interrupt_start, refuse_threads
from tests.support.waiting import eventually, eventually_async

END_THE_OTHERS = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


@pytest.fixture(autouse=True)
def own_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test a watchdog without a thread."""
    monkeypatch.setattr(watchdog, "_watchdog", watchdog._Watchdog())


def nothing() -> None:
    """Do nothing."""


def is_cut() -> bool:
    """Say whether a call that does not end by itself is cut soon after its deadline."""
    cut = threading.Event()
    with Watch(time.monotonic(), nothing, cut.set):
        return cut.wait(GRACE + 10)


def test_an_action_that_fails_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """After an action has raised, the deadlines of others are kept as before."""

    def fail() -> None:
        raise ValueError("the action's own")

    with caplog.at_level(logging.ERROR):
        remind(time.monotonic(), fail)
        eventually(lambda: "the action's own" in caplog.text)

    assert is_cut()


def test_a_call_is_cut_although_no_thread_can_cancel_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the limit of threads a call ends after the grace, and so does the next one."""
    with monkeypatch.context() as patched:
        refuse_threads(patched, "poolwire-sql-cancel")
        assert is_cut()
    assert "can't start new thread" in caplog.text

    assert is_cut()


def test_a_watchdog_that_could_not_start_is_started_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose deadline nobody can watch fails at once, and those after it are watched again."""
    with monkeypatch.context() as patched:
        refuse_threads(patched, "poolwire-sql-watchdog")
        with pytest.raises(DatabaseUnavailable, match="no thread can watch over deadlines: can't start new thread"):
            is_cut()

    assert is_cut()


def test_a_call_that_nobody_can_watch_gives_its_connection_back(
    pool: SQLPool, database: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails, and while its failure is still being looked at its connection is the next caller's."""
    pool.execute_query(database, "SELECT 1")
    with monkeypatch.context() as patched:
        refuse_threads(patched, "poolwire-sql-watchdog")
        with pytest.raises(DatabaseUnavailable, match="new thread") as caught:
            pool.execute_query(database, "SELECT 1", timeout=20)

    assert pool.get_stats()["metrics"]["active_connections"] == 0
    assert pool.execute_query(database, "SELECT 1", timeout=20) == [(1,)]
    assert pool.get_stats()["metrics"]["pool_misses"] == 1
    del caught


def test_a_connection_is_asked_although_nobody_can_watch_over_it(
    pool: SQLPool, postgres: DatabaseConfig, postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of threads a suspect connection that works is lent, and the one that does not is replaced."""
    assert [(1,)] == pool.execute_query(postgres, "SELECT 1")
    refuse_threads(monkeypatch, "poolwire-sql-watchdog")
    for misses in (1, 2):
        pool._sync(postgres).bucket.suspect_idle()
        assert [(1,)] == pool.execute_query(postgres, "SELECT 1")
        assert misses == pool.get_stats()["metrics"]["pool_misses"]
        with psycopg.connect(postgres_server.url(), autocommit=True) as other:
            other.execute(END_THE_OTHERS)


def test_a_lease_ends_although_nobody_can_watch_over_its_end(
    pool: SQLPool, database: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of threads what it left is rolled back, and its connection is the next borrower's."""
    with pool.connection(database) as connection:
        refuse_threads(monkeypatch, "poolwire-sql-watchdog")
        connection.execute(text("CREATE TABLE numbers (number INTEGER)"))
    with pool.session(database) as session:
        session.execute(text("CREATE TABLE numbers (number INTEGER)"))

    assert 0 == pool.get_stats()["metrics"]["active_connections"]
    pool.execute_query(database, "CREATE TABLE numbers (number INTEGER)")
    assert 1 == pool.get_stats()["metrics"]["pool_misses"]


@pytest.mark.parametrize("leased", [False, True])
async def test_a_cancellation_stays_one_although_nobody_can_repeat_it(
    leased: bool, pool: SQLPool, sqlite: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of threads a cancelled task is cancelled, and its connection executes the next statement."""
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000000) SELECT max(i) FROM n"

    async def execute(sql: str) -> object:
        if not leased:
            return await pool.execute_query_async(sqlite, sql)
        async with pool.connection(sqlite) as connection:
            return (await connection.execute(text(sql))).all()

    assert [(1,)] == await execute("SELECT 1")
    refuse_threads(monkeypatch, "poolwire-sql-watchdog")
    task = asyncio.create_task(execute(slow))
    await eventually_async(lambda: pool.get_stats()["metrics"]["active_connections"])
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [(2,)] == await asyncio.wait_for(execute("SELECT 2"), 20)
    await pool.stop_async()


@pytest.mark.parametrize("seconds", [math.inf, 1e10, 1e300])
def test_a_call_that_may_take_for_ever_harms_no_other(seconds: float) -> None:
    """A deadline beyond what a thread can wait for is none, and the others are kept."""
    with Watch(time.monotonic() + seconds, nothing, nothing):
        assert is_cut()


@pytest.mark.parametrize("timeout", [math.nan, "5", True])
async def test_a_timeout_that_is_no_number_is_refused(pool: SQLPool, database: DatabaseConfig, timeout: Any) -> None:
    """Every call, in threads and in tasks, refuses it in the same words, and takes no connection or row for it."""
    rows = iter([(1,)])
    insert = "INSERT INTO t VALUES (?)"
    calls: list[Callable[[], object]] = [
        lambda: pool.execute_query(database, "SELECT 1", timeout=timeout),
        lambda: pool.execute_many(database, insert, rows, timeout=timeout),
        lambda: pool.copy_rows(database, "t", ["a"], rows, timeout=timeout),
        lambda: pool.stream(database, "SELECT 1", timeout=timeout),
        lambda: pool.stream_async(database, "SELECT 1", timeout=timeout),
        lambda: pool.connection(database, timeout=timeout),
        lambda: pool.transaction(database, timeout=timeout),
        lambda: pool.session(database, timeout=timeout),
    ]
    awaited: list[Callable[[], Awaitable[object]]] = [
        lambda: pool.execute_query_async(database, "SELECT 1", timeout=timeout),
        lambda: pool.execute_many_async(database, insert, rows, timeout=timeout),
        lambda: pool.copy_rows_async(database, "t", ["a"], rows, timeout=timeout),
    ]
    words = f"timeout={timeout!r} is not allowed; it must be a number of seconds, or None"
    for call in calls:
        with pytest.raises(ConfigError, match=words):
            call()
    for begin in awaited:
        with pytest.raises(ConfigError, match=words):
            await begin()

    assert list(rows) == [(1,)]
    assert pool.get_stats()["metrics"]["pool_misses"] == 0
    assert pool.execute_query(database, "SELECT 1", timeout=20) == [(1,)]
    assert pool.get_stats()["metrics"]["active_connections"] == 0
    await pool.stop_async()


def test_calls_that_are_over_are_forgotten_before_their_deadlines() -> None:
    """However many calls have ended well within their timeouts, few of them are known to the watchdog."""
    for _ in range(5000):
        with Watch(time.monotonic() + 1000, nothing, nothing):
            pass

    eventually(lambda: len(watchdog._watchdog._due) < 1000)
    assert is_cut()


def test_an_interrupted_start_leaves_one_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the thread is being started, before it runs or after, ends neither it nor the watching."""
    for begun in (False, True):
        with monkeypatch.context() as patched:
            interrupt_start(patched, "poolwire-sql-watchdog", begun=begun)
            with pytest.raises(KeyboardInterrupt):
                remind(time.monotonic(), nothing)
    started = watchdog._watchdog._thread

    assert is_cut()
    assert watchdog._watchdog._thread is started


@pytest.mark.parametrize(
    "watch",
    [
        lambda cut: Watch(time.monotonic(), cut, nothing),
        lambda cut: Watch(time.monotonic() - GRACE, nothing, cut),
        lambda cut: Cutoff(time.monotonic(), cut),
    ],
    ids=["cancel", "cut", "cutoff"],
)
def test_a_call_does_not_end_while_its_connection_is_being_ended(
    watch: Callable[[Callable[[], None]], Watch | Cutoff],
) -> None:
    """What reaches for a connection has done so before the call returns, and whoever has it next is safe."""
    reached, go_on = threading.Event(), threading.Event()
    ended: list[str] = []

    def cut() -> None:
        reached.set()
        go_on.wait(10)
        ended.append("the connection")

    def call() -> None:
        with watch(cut):
            reached.wait(10)
        ended.append("the call")

    thread = threading.Thread(target=call)
    thread.start()
    assert reached.wait(10)
    thread.join(0.05)  # by then a call that does not wait has returned
    go_on.set()
    thread.join(10)

    assert ended == ["the connection", "the call"]
