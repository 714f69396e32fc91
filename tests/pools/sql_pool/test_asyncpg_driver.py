"""asyncpg under the pool: the private names that the driver relies on, and event loops that end or are others."""

from __future__ import annotations

import asyncio
import gc
import inspect
import ssl
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import text

import tests.support
from app.pools.errors import DatabaseUnavailable, QueryTimeout
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings
from app.pools.sql_pool.embedded import EmbeddedPostgres
from tests.support.chaos import Proxy
from tests.support.waiting import eventually, eventually_async

TLS = Path(tests.support.__file__).parent / "tls"


def backends(server: EmbeddedPostgres) -> int:
    """Return how many server processes serve the pool."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'poolwire'"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        found: int = connection.execute(count).fetchall()[0][0]
    return found


async def test_a_connection_knows_its_transport_and_its_loop(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """_transport has the socket, also in its own _sock, and _loop is the loop that the connection was made in."""
    async with pool.connection(postgres) as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        transport = raw._transport
        assert transport.get_extra_info("socket").fileno() == transport._sock.fileno()
        assert raw._loop is asyncio.get_running_loop()
    await pool.stop_async()


def test_a_connection_has_its_requests_to_cancel_and_cleans_them_up_when_it_closes() -> None:
    """_cancellations has the tasks of _cancel(), which fails quietly, and _clean_tasks() cancels them at the end."""
    begun = inspect.getsource(asyncpg.Connection._cancel_current_command)
    parameters = list(inspect.signature(asyncpg.Connection._cancel_current_command).parameters)
    assert "self._cancellations.add(self._loop.create_task(" in begun
    assert f"self._cancel({', '.join(parameters[1:])})" in begun
    assert "except Exception:" in inspect.getsource(asyncpg.Connection._cancel)
    assert "fut.cancel()" in inspect.getsource(asyncpg.Connection._clean_tasks)
    assert "self._clean_tasks()" in inspect.getsource(asyncpg.Connection._cleanup)


async def test_sqlalchemy_keeps_what_it_has_prepared_by_its_text(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """_prepared_statement_cache of SQLAlchemy's connection has the texts as its keys, and lets them be deleted."""
    async with pool.connection(postgres) as connection:
        await connection.execute(text("SELECT 1"))
        adapted: Any = (await connection.get_raw_connection()).dbapi_connection
        assert "SELECT 1" in list(adapted._prepared_statement_cache)
        del adapted._prepared_statement_cache["SELECT 1"]
        assert "SELECT 1" not in adapted._prepared_statement_cache
    await pool.stop_async()


async def test_an_encrypted_connection_has_its_bare_transport_inside(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """_ssl_protocol leads from the encrypted transport to the one that has the socket."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    assert postgres.port is not None
    with Proxy(postgres.port, context) as proxy:
        async with pool.connection(replace(postgres, port=proxy.port, sslmode="require")) as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            assert raw is not None
            outer = raw._transport
            assert outer._ssl_protocol._transport._sock.fileno() == outer.get_extra_info("socket").fileno()
        await pool.stop_async()


@pytest.mark.parametrize("ending", ["break", "aclose"])
async def test_a_stream_left_early_ends_quietly(
    pool: SQLPool, postgres: DatabaseConfig, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    """Nothing is logged, and the connection is idle again and serves the next stream."""
    for _ in range(5):
        stream = pool.stream_async(postgres, "SELECT * FROM generate_series(1, 10000)", batch=10)
        assert isinstance(stream, AsyncGenerator)
        async for _row in stream:
            break
        if ending == "aclose":
            await stream.aclose()
        del stream
        gc.collect()
        await eventually_async(lambda: pool.get_stats()["metrics"]["active_connections"] == 0)

    gc.collect()  # a task's error is logged when the task is collected
    assert caplog.text == ""
    assert pool.get_stats()["pools"][f"{postgres.label} (async)"]["discarded"] == 0
    await pool.stop_async()


# What a server says before it ends a connection that it is about to close, in the protocol's form.
FAREWELL = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"


async def test_a_server_that_ends_a_connection_between_two_calls_is_named(
    pool: SQLPool, postgres: DatabaseConfig
) -> None:
    """Whoever asks once the farewell has been read, but not yet the end, learns that the server closed it."""
    await pool.execute_query_async(postgres, "SELECT 1")
    async with pool.connection(postgres) as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
    raw._protocol.data_received(b"E" + (4 + len(FAREWELL)).to_bytes(4) + FAREWELL)
    with pytest.raises(DatabaseUnavailable, match="was lost: the server closed the connection"):
        await pool.execute_query_async(postgres, "SELECT 1")
    assert await pool.execute_query_async(postgres, "SELECT 1") == [(1,)]
    await pool.stop_async()


@pytest.mark.parametrize("failure", [FileNotFoundError("rows.csv"), TimeoutError("of the rows")], ids=repr)
@pytest.mark.parametrize("call", ["execute_many", "copy_rows"])
async def test_an_error_of_the_callers_rows_is_not_the_connections(
    postgres: DatabaseConfig, call: str, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches the caller as it is, stores nothing, and costs no connection."""
    monkeypatch.setattr("app.pools.sql_pool.suspicion.PROBE_AFTER", 0.0)
    # With one connection whoever comes next waits for it, should the server's answer not be there yet.
    pool = SQLPool(SQLPoolSettings(max_connections=1, checkout_timeout=20))

    def rows() -> Iterator[tuple[Any, ...]]:
        yield (1,)
        raise failure

    await pool.execute_query_async(postgres, "CREATE TABLE t (a int)")
    before = await pool.execute_query_async(postgres, "SELECT pg_backend_pid()")
    if call == "execute_many":
        storing = pool.execute_many_async(postgres, "INSERT INTO t VALUES (?)", rows())
    else:
        storing = pool.copy_rows_async(postgres, "t", ["a"], rows())
    with pytest.raises(type(failure)) as caught:
        await storing

    assert caught.value is failure
    assert failure.__context__ is None
    (entry,) = pool._async(postgres).bucket._entries
    assert entry.resource.probe is not None
    if call == "copy_rows":  # its answer may come at any time: here before the next caller has its turn
        eventually(entry.resource.probe.readable)
    del entry
    assert await pool.execute_query_async(postgres, "SELECT count(*) FROM t") == [(0,)]
    assert await pool.execute_query_async(postgres, "SELECT pg_backend_pid()") == before
    await pool.stop_async()


@pytest.mark.parametrize("turns", range(1, 9))
async def test_a_cancelled_call_leaves_a_connection_that_begins_transactions(
    postgres: DatabaseConfig, turns: int
) -> None:
    """Wherever execute_many was cancelled, also before its BEGIN was answered, the same connection serves the next."""
    insert = "INSERT INTO t VALUES (?)"
    pool = SQLPool(SQLPoolSettings(max_connections=1, min_connections=0, checkout_timeout=20))
    await pool.execute_query_async(postgres, "CREATE TABLE t (a int)")
    process = await pool.execute_query_async(postgres, "SELECT pg_backend_pid()")
    for _ in range(5):
        await pool.execute_query_async(postgres, "TRUNCATE t")
        task = asyncio.create_task(pool.execute_many_async(postgres, insert, [(1,)]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

        before = len(await pool.execute_query_async(postgres, "SELECT a FROM t"))
        assert await pool.execute_many_async(postgres, insert, [(2,), (3,)]) == 2
        async with pool.transaction(postgres) as connection:
            assert (await connection.execute(text("SELECT count(*) FROM t"))).scalar() == before + 2
    assert await pool.execute_query_async(postgres, "SELECT pg_backend_pid()") == process
    await pool.stop_async()


async def test_a_cancellation_at_the_moment_of_the_timeout_stays_one(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """A task that is told to end just as its statement's time is over does not take that for a QueryTimeout."""
    await pool.execute_query_async(postgres, "SELECT 1")
    for _ in range(3):
        task = asyncio.create_task(pool.execute_query_async(postgres, "SELECT pg_sleep(20)", timeout=0.05))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.06, task.cancel)
        time.sleep(0.07)  # noqa: ASYNC251 - so that both are due in the loop's next turn
        with pytest.raises(asyncio.CancelledError):
            await task
    await pool.stop_async()


def use_in_loops(pool: SQLPool, config: DatabaseConfig) -> None:
    for number in range(3):
        loop = asyncio.new_event_loop()
        found = loop.run_until_complete(pool.execute_query_async(config, "SELECT ?::int", (number,)))
        loop.close()
        assert found == [(number,)]
    pool.sweep()


def test_connections_of_a_closed_loop_are_closed_on_the_server(
    pool: SQLPool, postgres: DatabaseConfig, postgres_server: EmbeddedPostgres
) -> None:
    """They end with it, and the next loop gets its own."""
    use_in_loops(pool, postgres)

    eventually(lambda: backends(postgres_server) == 0)
    assert pool.get_stats()["metrics"]["total_connections"] == 0


def test_a_loop_that_closes_while_its_connection_is_closed_is_no_error(
    pool: SQLPool, postgres: DatabaseConfig, postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that closes a connection whose event loop seemed open, and was not any more, closes it all the same."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.execute_query_async(postgres, "SELECT 1"))
    (bucket,) = pool._buckets()
    loop.close()
    answers = iter([False])  # to the driver
    monkeypatch.setattr(loop, "is_closed", lambda: next(answers, True))

    bucket.clear()

    eventually(lambda: backends(postgres_server) == 0)
    assert pool.get_stats()["metrics"]["total_connections"] == 0


def test_connections_of_a_loop_that_stands_still_are_closed_for_threads(
    pool: SQLPool, postgres: DatabaseConfig, postgres_server: EmbeddedPostgres
) -> None:
    """Threads that get the places of a loop's idle connections do not exceed the cap on the server."""

    async def use_all() -> None:
        await asyncio.gather(*(pool.execute_query_async(postgres, "SELECT pg_sleep(0.1)") for _ in range(4)))

    with closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(use_all())
        with ExitStack() as leases:
            for _ in range(4):
                leases.enter_context(pool.connection(postgres)).execute(text("SELECT 1"))

            eventually(lambda: backends(postgres_server) == 4)

        loop.run_until_complete(use_all())


# uvloop warns of the transports that it closes with itself, and hangs where that warning is an error.
either_loop = pytest.mark.parametrize(
    "make",
    ["asyncio", pytest.param("uvloop", marks=pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))],
)


@either_loop
@pytest.mark.parametrize("ending", ["idle", "cancelled", "running"])
def test_loops_end_quietly_whatever_their_tasks_did(
    postgres: DatabaseConfig,
    postgres_server: EmbeddedPostgres,
    caplog: pytest.LogCaptureFixture,
    make: str,
    ending: str,
) -> None:
    """Nothing is logged, leaked or left on the server when one event loop after another ends, in a query or not."""
    new_loop = pytest.importorskip(make).new_event_loop

    async def use() -> None:
        await asyncio.gather(*(pool.execute_query_async(postgres, "SELECT 1") for _ in range(12)))
        if ending != "idle":
            task = asyncio.create_task(pool.execute_query_async(postgres, "SELECT pg_sleep(0.5)"))
            await eventually_async(lambda: pool.get_stats()["metrics"]["active_connections"] == 1)
            if ending == "cancelled":
                task.cancel()

    with SQLPool(SQLPoolSettings(max_connections=4)) as pool:
        for _ in range(6):  # more often than there are connections
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(use())
        gc.collect()  # what is dropped unfinished complains now
    eventually(lambda: backends(postgres_server) == 0)
    assert caplog.text == ""


@either_loop
@pytest.mark.parametrize("ending", ["connecting", "timeout", "cleaning"])
def test_a_loop_that_ends_while_a_socket_is_opened_says_nothing(
    postgres: DatabaseConfig, caplog: pytest.LogCaptureFixture, make: str, ending: str
) -> None:
    """However far an attempt to connect has come, the request that ends a statement, or the cleaning after it."""
    new_loop = pytest.importorskip(make).new_event_loop

    async def use(pool: SQLPool, turns: int) -> None:
        if ending == "connecting":
            asyncio.create_task(pool.execute_query_async(postgres, "SELECT 1"))  # noqa: RUF006 - the loop ends it
        else:
            await pool.execute_query_async(postgres, "SELECT 1")
            with pytest.raises(QueryTimeout):
                await pool.execute_query_async(postgres, "SELECT pg_sleep(20)", timeout=0.05)
        if ending == "cleaning":
            (entry,) = pool._async(postgres).bucket._entries
            await asyncio.wait(entry.resource.raw._cancellations, timeout=10)
        for _ in range(turns):
            await asyncio.sleep(0)

    for turns in range(24 if ending == "connecting" else 12):
        with SQLPool(SQLPoolSettings(max_connections=2)) as pool, asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(use(pool, turns))
    gc.collect()
    assert caplog.text == ""


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # of the socket to which nobody answers
def test_a_loop_that_ends_in_a_silent_network_takes_no_place_along(postgres: DatabaseConfig) -> None:
    """The pool has its places back, and what the loop had left to do ends without an error of its own."""
    assert postgres.port is not None

    async def use() -> None:
        asyncio.create_task(pool.execute_query_async(silent, "SELECT pg_sleep(20)"))  # noqa: RUF006 - the loop ends it
        await eventually_async(lambda: pool.get_stats()["metrics"]["active_connections"] == 1)
        proxy.swallow()
        await eventually_async(lambda: proxy.swallowing)

    for _ in range(3):
        with Proxy(postgres.port) as proxy, SQLPool(SQLPoolSettings(max_connections=2)) as pool:
            silent = replace(postgres, port=proxy.port)
            asyncio.run(use())
            pool.sweep()
            assert pool.get_stats()["metrics"]["total_connections"] == 0
        gc.collect()  # an error of what is dropped unfinished is pytest's from now on


def test_a_lease_that_its_loop_took_along_does_not_cost_its_place(
    postgres: DatabaseConfig, postgres_server: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop that is closed by hand in the middle of a query: the holder is named, and the pool has its place back."""
    with SQLPool(SQLPoolSettings(max_connections=1, checkout_timeout=5)) as pool:
        for _ in range(3):
            loop = asyncio.new_event_loop()
            task = loop.create_task(pool.execute_query_async(postgres, "SELECT pg_sleep(0.5)"))
            loop.run_until_complete(eventually_async(lambda: pool.get_stats()["metrics"]["active_connections"] == 1))
            loop.close()
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's complaint about such loops
            caplog.clear()
            pool.sweep()
            assert "leased when its event loop closed" in caplog.text
            assert pool.execute_query(postgres, "SELECT 1") == [(1,)]
            del task
            gc.collect()
            assert pool.get_stats()["metrics"]["active_connections"] == 0
    eventually(lambda: backends(postgres_server) == 0)


def test_a_loop_of_another_make_serves_as_well(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """Queries, leases, timeouts and the pool's stop work in uvloop's event loop."""
    uvloop = pytest.importorskip("uvloop")  # nothing of ours needs it

    async def use() -> None:
        assert await pool.execute_query_async(postgres, "SELECT ?::int", (7,)) == [(7,)]
        async with pool.transaction(postgres) as connection:
            assert (await connection.execute(text("SELECT 8"))).scalar() == 8
        with pytest.raises(QueryTimeout):
            await pool.execute_query_async(postgres, "SELECT pg_sleep(60)", timeout=0.1)
        await pool.stop_async()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(use())


def test_encrypted_connections_of_a_closed_loop_are_closed_on_the_server(
    pool: SQLPool, postgres: DatabaseConfig, postgres_server: EmbeddedPostgres
) -> None:
    """TLS does not keep a connection whose event loop is no more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    assert postgres.port is not None
    with Proxy(postgres.port, context) as proxy:
        use_in_loops(pool, replace(postgres, port=proxy.port, sslmode="require"))

        eventually(lambda: backends(postgres_server) == 0)
