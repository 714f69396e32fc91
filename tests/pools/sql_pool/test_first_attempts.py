"""What pools that are written in an afternoon get wrong, one sentence each."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import text

from app.pools.errors import PoolTimeout
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_postgresql_config, get_sqlite_config
from app.pools.sql_pool.embedded import EmbeddedPostgres
from tests.support.chaos import Proxy


def states(server: EmbeddedPostgres) -> list[str]:
    """Return what each of the pool's server processes does now."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        found = connection.execute("SELECT state FROM pg_stat_activity WHERE application_name = 'poolwire'").fetchall()
    return [state for (state,) in found]


def test_a_sqlite_connection_serves_one_thread_after_the_other(pool: SQLPool, sqlite: DatabaseConfig) -> None:
    """A connection that one thread opened works in the next."""
    pool.execute_query(sqlite, "CREATE TABLE notes (body TEXT)")
    for number in range(3):
        thread = threading.Thread(
            target=pool.execute_query, args=(sqlite, "INSERT INTO notes VALUES (?)", (str(number),))
        )
        thread.start()
        thread.join(20)

    assert pool.execute_query(sqlite, "SELECT count(*) FROM notes") == [(3,)]
    assert pool.get_stats()["pools"][sqlite.label]["misses"] == 1


async def test_a_select_leaves_nobody_idle_in_transaction(
    pool: SQLPool, postgres: DatabaseConfig, postgres_server: EmbeddedPostgres
) -> None:
    """After statements and leases that only read, the server's processes are idle."""
    pool.execute_query(postgres, "SELECT 1")
    await pool.execute_query_async(postgres, "SELECT 1")
    with pool.connection(postgres) as connection:
        connection.execute(text("SELECT 1"))
    async with pool.session(postgres) as session:
        await session.execute(text("SELECT 1"))

    assert states(postgres_server) == ["idle", "idle"]
    await pool.stop_async()


def test_housekeeping_leaves_leased_connections_alone(postgres: DatabaseConfig) -> None:
    """A round of housekeeping neither pings nor closes what somebody works with, however old it is."""
    settings = SQLPoolSettings(max_idle_time=0.001, max_lifetime=0.001, min_connections=0)
    with SQLPool(settings) as pool, pool.connection(postgres) as connection:
        mine = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        for _ in range(3):
            pool.sweep()

        assert connection.execute(text("SELECT pg_backend_pid()")).scalar() == mine


async def test_a_password_of_any_characters_logs_in(
    pool: SQLPool, postgres: DatabaseConfig, postgres_server: EmbeddedPostgres
) -> None:
    """A password with everything that breaks a URL or a DSN works, with both drivers, as a field and in a URL."""
    password = "p@ss:/?#[]% 'ünsäfe\\\""
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS odd")
        connection.execute(psycopg.sql.SQL("CREATE ROLE odd LOGIN PASSWORD {}").format(psycopg.sql.Literal(password)))
    config = get_postgresql_config("127.0.0.1", postgres_server.port, "postgres", "odd", password)

    assert pool.execute_query(config, "SELECT current_user") == [("odd",)]
    assert await pool.execute_query_async(config, "SELECT current_user") == [("odd",)]
    url = f"postgresql://odd:{quote(password, safe='')}@127.0.0.1:{postgres_server.port}/postgres"
    assert DatabaseConfig.from_url(url) == config
    await pool.stop_async()


def test_callers_of_a_silent_server_give_up_at_the_same_time(postgres_server: EmbeddedPostgres) -> None:
    """Four callers wait their timeout each, not each other's: nobody connects while holding a lock."""
    with Proxy(postgres_server.port) as proxy, SQLPool(SQLPoolSettings(checkout_timeout=1.0)) as pool:
        config = replace(postgres_server.config(), port=proxy.port)
        proxy.swallow()

        def call(_: int) -> None:
            with pytest.raises(PoolTimeout):
                pool.execute_query(config, "SELECT 1")

        began = time.monotonic()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(call, range(4)))
        took = time.monotonic() - began
        began = time.monotonic()
        pool.stop()

        assert took < 3.5  # one after the other they would take 4 s
        assert time.monotonic() - began < 3.5  # stopping does not wait for the silent server


async def test_a_timeout_names_a_server_that_does_not_answer(postgres_server: EmbeddedPostgres) -> None:
    """With no connection in use the error says since when one is awaited, to threads and to tasks, and no cap."""
    told = r"0 of 20 in use, 0 waiting; connecting for \d+\.\d+ s, no answer\. Check that the server answers"
    with Proxy(postgres_server.port) as proxy, SQLPool(SQLPoolSettings()) as pool:
        config = replace(postgres_server.config(), port=proxy.port)
        proxy.swallow()
        with pytest.raises(PoolTimeout, match=told) as refused:
            pool.execute_query(config, "SELECT 1", timeout=0.3)
        assert 0 < (refused.value.connecting or 0) < 30
        with pytest.raises(PoolTimeout, match=told):
            await pool.execute_query_async(config, "SELECT 1", timeout=0.3)
        await pool.stop_async()


def test_a_connection_is_used_again(pool: SQLPool, database: DatabaseConfig) -> None:
    """A hundred calls one after the other need one connection."""
    for _ in range(100):
        pool.execute_query(database, "SELECT 1")

    metrics = pool.get_stats()["metrics"]
    assert (metrics["pool_misses"], metrics["pool_hits"], metrics["total_connections"]) == (1, 99, 1)


def test_a_relative_path_means_the_same_file_later(
    pool: SQLPool, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config made in one working folder still means its file in another."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    monkeypatch.chdir(first)
    config = get_sqlite_config("notes.db")
    pool.execute_query(config, "CREATE TABLE notes (body TEXT)")
    monkeypatch.chdir(second)

    assert pool.execute_query(config, "SELECT * FROM notes") == []
    assert get_sqlite_config("notes.db") != config
