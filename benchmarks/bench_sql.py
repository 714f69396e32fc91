"""The SQL pool against bare drivers and other pools, on a real PostgreSQL and a real SQLite file."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import asyncpg
import psycopg
import psycopg_pool
from harness import Figure, arguments, interleave, ratio, repeat, report
from sqlalchemy import create_engine, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_sqlite_config, suspicion
from app.pools.sql_pool.embedded import EmbeddedPostgres

ROWS = 1000
CONNECTIONS = 20
BY_KEY = "SELECT id, body FROM notes WHERE id = "


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


class QueuePoolOfOurs:
    """What many write first: connections in a queue, a transaction for each statement."""

    def __init__(self, connect: Callable[[], Any], size: int) -> None:
        self._idle: queue.Queue[Any] = queue.Queue()
        for _ in range(size):
            self._idle.put(connect())

    def execute(self, sql: str, params: tuple[Any, ...]) -> list[Any]:
        connection = self._idle.get()
        try:
            rows: list[Any] = connection.execute(sql, params).fetchall()
            connection.commit()
            return rows
        finally:
            self._idle.put(connection)

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get().close()


def in_threads(number: int, make: Callable[[int], Callable[[], object]]) -> Callable[[int], float]:
    """Return a contender that spreads its work over threads; ``make(i)`` is the call of the i-th."""
    calls = [make(i) for i in range(number)]

    def run(count: int) -> float:
        barrier = threading.Barrier(number + 1)

        def work(call: Callable[[], object]) -> None:
            barrier.wait()
            for _ in range(count // number):
                call()

        with ThreadPoolExecutor(number) as threads:
            for call in calls:
                threads.submit(work, call)
            barrier.wait()
            began = time.perf_counter()
        return time.perf_counter() - began

    return run


def cpu_of(run: Callable[[int], float]) -> Callable[[int], float]:
    """Return a contender measured by the process's CPU seconds."""

    def measured(count: int) -> float:
        began = time.process_time()
        run(count)
        return time.process_time() - began

    return measured


def in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], Awaitable[object]]) -> Callable[[int], float]:
    """Return a contender that awaits its call again and again."""

    async def run(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            await call()
        return time.perf_counter() - began

    return lambda count: loop.run_until_complete(run(count))


def speed(runs: dict[str, list[float]], name: str, base: str) -> float:
    """Return how many times as fast as ``base`` the contender ``name`` is."""
    return 1 / ratio(runs, name, base)


def postgresql_threads(pool: SQLPool, config: DatabaseConfig, url: str, quick: bool) -> list[Figure]:
    raw = [psycopg.connect(url, autocommit=True) for _ in range(CONNECTIONS)]
    default = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), pool_size=CONNECTIONS, max_overflow=0)
    ping = create_engine(
        url.replace("postgresql:", "postgresql+psycopg:"), pool_size=CONNECTIONS, max_overflow=0, pool_pre_ping=True
    )
    other = psycopg_pool.ConnectionPool(
        url, min_size=CONNECTIONS, max_size=CONNECTIONS, kwargs={"autocommit": True}, open=True
    )
    naive = QueuePoolOfOurs(lambda: psycopg.connect(url), CONNECTIONS)
    statement = text(BY_KEY + ":id")

    def bare(number: int) -> Callable[[], object]:
        cursor = raw[number % CONNECTIONS].cursor()
        return lambda: cursor.execute(BY_KEY + "%s", (number + 1,)).fetchall()

    def ours(number: int) -> Callable[[], object]:
        return lambda: pool.execute_query(config, BY_KEY + "?", (number + 1,))

    def sqlalchemy(engine: Any) -> Callable[[int], Callable[[], object]]:
        def call(number: int) -> list[Any]:
            with engine.connect() as connection:
                return list(connection.execute(statement, {"id": number + 1}))

        return lambda number: lambda: call(number)

    def pooled(number: int) -> Callable[[], object]:
        def call() -> list[Any]:
            with other.connection() as connection:
                return connection.execute(BY_KEY + "%s", (number + 1,)).fetchall()

        return call

    def connecting(number: int) -> Callable[[], object]:
        def call() -> list[Any]:
            with psycopg.connect(url, autocommit=True) as connection:
                return connection.execute(BY_KEY + "%s", (number + 1,)).fetchall()

        return call

    def queued(number: int) -> Callable[[], object]:
        return lambda: naive.execute(BY_KEY + "%s", (number + 1,))

    rounds = 5 if quick else 9
    one = interleave(
        {
            "bare": repeat(bare(0)),
            "ours": repeat(ours(0)),
            "default": repeat(sqlalchemy(default)(0)),
            "pre_ping": repeat(sqlalchemy(ping)(0)),
            "psycopg_pool": repeat(pooled(0)),
            "queue": repeat(queued(0)),
        },
        rounds=rounds,
        count=400 if quick else 1500,
    )
    connects = interleave({"ours": repeat(ours(0)), "connect": repeat(connecting(0))}, rounds=rounds, count=20)
    many = interleave(
        {
            "bare": in_threads(CONNECTIONS, bare),
            "ours": in_threads(32, ours),
            "default": in_threads(32, sqlalchemy(default)),
            "psycopg_pool": in_threads(32, pooled),
        },
        rounds=rounds,
        count=1600 if quick else 6400,
    )
    for connection in raw:
        connection.close()
    default.dispose()
    ping.dispose()
    other.close()
    naive.close()
    return [
        Figure("PostgreSQL, 1 thread, vs bare psycopg", speed(one, "ours", "bare"), 0.80),
        Figure("PostgreSQL, 32 threads on 20, vs bare psycopg", speed(many, "ours", "bare"), 0.55),
        Figure("PostgreSQL, 1 thread, vs SQLAlchemy default", speed(one, "ours", "default"), 3.0),
        Figure("PostgreSQL, 1 thread, vs SQLAlchemy pre_ping", speed(one, "ours", "pre_ping")),
        Figure("PostgreSQL, 1 thread, vs psycopg_pool", speed(one, "ours", "psycopg_pool"), 1.3),
        Figure("PostgreSQL, 1 thread, vs a pool on queue.Queue", speed(one, "ours", "queue")),
        Figure("PostgreSQL, 1 thread, vs connect per query", speed(connects, "ours", "connect"), 40.0),
        Figure("PostgreSQL, 32 threads, vs SQLAlchemy default", speed(many, "ours", "default"), 3.0),
        Figure("PostgreSQL, 32 threads, vs psycopg_pool", speed(many, "ours", "psycopg_pool"), 1.3),
    ]


def postgresql_tasks(pool: SQLPool, config: DatabaseConfig, url: str, quick: bool) -> list[Figure]:
    loop = asyncio.new_event_loop()
    raw = loop.run_until_complete(asyncpg.connect(url))

    async def open_pool() -> Any:  # which remembers the loop that runs now
        return await asyncpg.create_pool(url, min_size=4, max_size=CONNECTIONS)

    other = loop.run_until_complete(open_pool())
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    statement = text(BY_KEY + ":id")

    async def by_engine() -> list[Any]:
        async with engine.connect() as connection:
            return list(await connection.execute(statement, {"id": 1}))

    runs = interleave(
        {
            "bare": in_loop(loop, lambda: raw.fetch(BY_KEY + "$1", 1)),
            "ours": in_loop(loop, lambda: pool.execute_query_async(config, BY_KEY + "?", (1,))),
            "asyncpg.Pool": in_loop(loop, lambda: other.fetch(BY_KEY + "$1", 1)),
            "AsyncEngine": in_loop(loop, by_engine),
        },
        rounds=5 if quick else 9,
        count=400 if quick else 1500,
    )

    async def close() -> None:
        await raw.close()
        await other.close()
        await engine.dispose()
        for bucket in pool._buckets():
            if bucket.label == config.label:
                bucket.clear()
        await asyncio.sleep(0.05)

    loop.run_until_complete(close())
    loop.close()
    return [
        Figure("asyncio, vs bare asyncpg", speed(runs, "ours", "bare"), 0.85),
        Figure("asyncio, vs asyncpg.Pool", speed(runs, "ours", "asyncpg.Pool"), 1.7),
        Figure("asyncio, vs AsyncEngine", speed(runs, "ours", "AsyncEngine"), 3.0),
    ]


def sqlite_threads(pool: SQLPool, config: DatabaseConfig, quick: bool) -> list[Figure]:
    def bare(number: int) -> Callable[[], object]:
        connection = sqlite3.connect(config.database, isolation_level=None, check_same_thread=False)
        return lambda: connection.execute(BY_KEY + "?", (number + 1,)).fetchall()

    def ours(number: int) -> Callable[[], object]:
        return lambda: pool.execute_query(config, BY_KEY + "?", (number + 1,))

    def connecting(number: int) -> Callable[[], object]:
        def call() -> list[Any]:
            connection = sqlite3.connect(config.database)
            try:
                return connection.execute(BY_KEY + "?", (number + 1,)).fetchall()
            finally:
                connection.close()

        return call

    rounds = 5 if quick else 9
    one = interleave({"bare": repeat(bare(0)), "ours": repeat(ours(0))}, rounds=rounds, count=4000 if quick else 20000)
    connects = interleave({"ours": repeat(ours(0)), "connect": repeat(connecting(0))}, rounds=rounds, count=300)
    eight = interleave(
        {"bare": in_threads(8, bare), "ours": in_threads(8, ours)}, rounds=rounds, count=8000 if quick else 40000
    )
    return [
        Figure("SQLite, 1 thread, vs bare sqlite3", speed(one, "ours", "bare"), 0.70),
        Figure("SQLite, 8 threads, vs bare sqlite3", speed(eight, "ours", "bare"), 0.60),
        Figure("SQLite, 1 thread, vs connect per query", speed(connects, "ours", "connect"), 10.0),
    ]


def checkouts(pool: SQLPool, config: DatabaseConfig, url: str, quick: bool) -> list[Figure]:
    bucket = pool._sync(config).bucket
    other = psycopg_pool.ConnectionPool(url, min_size=8, max_size=8, open=True)
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), pool_size=8, max_overflow=0)

    def ours(number: int) -> Callable[[], object]:
        return lambda: bucket.give_back(bucket.checkout())

    def pooled(number: int) -> Callable[[], object]:
        return lambda: other.putconn(other.getconn())

    def sqlalchemy(number: int) -> Callable[[], object]:
        return lambda: engine.raw_connection().close()

    figures = []
    for threads in (1, 8):
        contenders = {
            "ours": cpu_of(in_threads(threads, ours)),
            "psycopg_pool": cpu_of(in_threads(threads, pooled)),
            "raw_connection": cpu_of(in_threads(threads, sqlalchemy)),
        }
        with patch.object(suspicion, "PROBE_AFTER", 0.0):  # or what was returned this moment would not be looked at
            runs = interleave(contenders, rounds=5 if quick else 9, count=4000 if quick else 16000)
        for name, target in (("psycopg_pool", 0.6), ("raw_connection", 0.35)):
            title = f"checkout and return, {threads} thread(s), CPU vs {name}"
            figures.append(Figure(title, ratio(runs, "ours", name), target, at_least=False))
    other.close()
    engine.dispose()
    return figures


def bulk(pool: SQLPool, config: DatabaseConfig, url: str, quick: bool) -> list[Figure]:
    rows = [(number, f"note number {number}") for number in range(10_000)]
    raw = psycopg.connect(url, autocommit=True)
    pool.execute_query(config, "CREATE TABLE bulk (id int, body text)")

    def one_by_one() -> None:
        with raw.transaction(), raw.cursor() as cursor:
            for row in rows:
                cursor.execute("INSERT INTO bulk (id, body) VALUES (%s, %s)", row)

    runs = interleave(
        {
            "one by one": repeat(one_by_one),
            "execute_many": repeat(
                lambda: pool.execute_many(config, "INSERT INTO bulk (id, body) VALUES (?, ?)", rows)
            ),
            "copy_rows": repeat(lambda: pool.copy_rows(config, "bulk", ["id", "body"], rows)),
        },
        rounds=2 if quick else 5,
        count=1,
    )
    raw.close()
    return [
        Figure("10k rows, execute_many vs row by row", speed(runs, "execute_many", "one by one"), 6.0),
        Figure("10k rows, copy_rows vs row by row", speed(runs, "copy_rows", "one by one"), 30.0),
    ]


def orm(pool: SQLPool, config: DatabaseConfig, url: str, quick: bool) -> list[Figure]:
    default = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    another = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    engine = pool.engine(config)

    def session(on: Any) -> Callable[[], object]:
        def call() -> Note | None:
            with Session(on) as opened:
                return opened.scalars(select(Note).where(Note.id == 1)).first()

        return call

    runs = interleave(
        {
            "QueuePool": repeat(session(default)),
            "ours": repeat(session(engine)),
            "another": repeat(session(another)),
        },
        # Short rounds: what the machine does meanwhile is larger than what a checkout adds to three round trips.
        rounds=30 if quick else 150,
        count=60,
    )
    default.dispose()
    another.dispose()
    return [
        Figure("ORM session, vs the same on QueuePool", speed(runs, "ours", "QueuePool"), 1.0),
        Figure("another QueuePool vs QueuePool: the noise", speed(runs, "another", "QueuePool")),
    ]


def main() -> None:
    quick = arguments("the SQL pool against bare drivers and other pools").quick
    settings = SQLPoolSettings(max_connections=CONNECTIONS)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres() as server, SQLPool(settings) as pool:
        postgresql, sqlite = server.config(), get_sqlite_config(Path(folder) / "bench.db")
        notes = [(number, f"note number {number}") for number in range(1, ROWS + 1)]
        for config in (postgresql, sqlite):
            pool.execute_query(config, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)")
            pool.copy_rows(config, "notes", ["id", "body"], notes)
        figures += postgresql_threads(pool, postgresql, server.url(), quick)
        figures += postgresql_tasks(pool, postgresql, server.url(), quick)
        figures += sqlite_threads(pool, sqlite, quick)
        figures += checkouts(pool, postgresql, server.url(), quick)
        figures += bulk(pool, postgresql, server.url(), quick)
        figures += orm(pool, postgresql, server.url(), quick)
    report("SQL pool", figures, ("SQLAlchemy", "psycopg", "asyncpg", "psycopg-pool"))


if __name__ == "__main__":
    main()
