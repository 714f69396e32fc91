"""What every pool can do: it is paused, and goes on."""

import asyncio
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from app.pools.core.settings import SQLPoolSettings
from app.pools.errors import DeadlineExceeded, LeaseLeaked, PoolTimeout
from app.pools.http_pool import HTTPConfig, HTTPPool
from app.pools.sql_pool import SQLPool, get_sqlite_config
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo import replier
from tests.support.misbehaving import misbehaving_server
from tests.support.waiting import eventually


def waiting(pool):
    return sum(each.get("waiting", 0) + each.get("queued", 0) for each in pool.get_stats()["pools"].values())


@contextmanager
def zmq_use():
    with ZMQPool() as pool, replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        yield pool, lambda timeout=None: pool.request(config, b"done", timeout).decode()


@contextmanager
def sql_use():
    config = get_sqlite_config(":memory:", application_name=uuid.uuid4().hex)
    with SQLPool(SQLPoolSettings()) as pool:
        yield pool, lambda timeout=None: pool.execute_query(config, "SELECT 'done'", timeout=timeout)[0][0]


@contextmanager
def sql_use_in_a_task():
    config = get_sqlite_config(":memory:", application_name=uuid.uuid4().hex)

    async def ask(pool, timeout):
        rows = await pool.execute_query_async(config, "SELECT 'done'", timeout=timeout)
        return rows[0][0]

    with SQLPool(SQLPoolSettings()) as pool:
        yield pool, lambda timeout=None: asyncio.run(ask(pool, timeout))


@contextmanager
def http_use():
    with HTTPPool() as pool, misbehaving_server() as server:
        config = HTTPConfig(server.url)
        yield pool, lambda timeout=30: "done" if pool.request(config, "GET", "/ok", timeout=timeout).status_code else ""


@contextmanager
def http_use_in_a_task():
    with HTTPPool() as pool, misbehaving_server() as server:
        config = HTTPConfig(server.url)

        async def ask(timeout):
            response = await pool.request_async(config, "GET", "/ok", timeout=timeout)
            return "done" if response.status_code else ""

        yield pool, lambda timeout=30: asyncio.run(ask(timeout))


@pytest.mark.parametrize("used", [zmq_use, sql_use, sql_use_in_a_task, http_use, http_use_in_a_task])
def test_a_paused_pool_lets_callers_wait_whether_their_key_is_new_or_not(used):
    """Whoever uses a paused pool, for the first time or again, waits until `resume` and is served then."""
    with used() as (pool, use), ThreadPoolExecutor(1) as threads:
        for _ in range(2):
            pool.pause()
            using = threads.submit(use)
            eventually(lambda: waiting(pool) == 1)
            pool.resume()
            assert "done" == using.result(20)


@pytest.mark.parametrize("used", [zmq_use, sql_use, sql_use_in_a_task, http_use, http_use_in_a_task])
def test_who_waits_for_a_paused_pool_in_vain_is_told_so(used):
    """The error names the pause and what ends it, and no cap that it would help to raise."""
    with used() as (pool, use):
        for _ in range(2):
            pool.pause()
            with pytest.raises((PoolTimeout, DeadlineExceeded), match=r"paused.*[Cc]all resume\(\)") as refused:
                use(0.05)
            assert "MAX_" not in str(refused.value)
            pool.resume()
            assert "done" == use()


def test_a_pool_that_is_started_again_is_not_paused():
    """A pause ends with the pool's stop."""
    with zmq_use() as (pool, use):
        pool.pause()
        pool.stop()
        pool.start()
        assert "done" == use()


@pytest.mark.parametrize("kind", [ZMQPool, SQLPool, HTTPPool])
def test_a_pool_starts_and_stops_beside_calls_that_fill_the_loops_executor(kind):
    """`start_async` and `stop_async` wait for none of the threads in which others use pools synchronously."""
    pool, may_end = kind(), threading.Event()

    async def turn():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        using = loop.run_in_executor(None, may_end.wait, 30)
        try:
            await asyncio.wait_for(pool.start_async(), 10)
            await asyncio.wait_for(pool.stop_async(), 10)
            assert pool.closed
        finally:
            may_end.set()
            assert await using

    asyncio.run(turn())


@contextmanager
def zmq_lease():
    with zmq_use() as (pool, use), replier() as endpoint:
        yield pool, use, pool.socket(SocketConfig(SocketType.REQ, endpoint))


@contextmanager
def sql_lease():
    with sql_use() as (pool, use):
        yield pool, use, pool.connection(get_sqlite_config(":memory:", application_name=uuid.uuid4().hex))


@contextmanager
def http_lease():
    with http_use() as (pool, use), misbehaving_server() as server:
        yield pool, use, pool.session(HTTPConfig(server.url))


@pytest.mark.parametrize("leased", [zmq_lease, sql_lease, http_lease])
def test_a_start_during_a_stop_waits_for_its_end(leased):
    """What is used after the start is not closed by the stop that was under way."""
    started = threading.Event()

    def start_and_use():
        pool.start()
        started.set()
        return use()

    with leased() as (pool, use, lease), ThreadPoolExecutor(2) as threads:
        with lease:
            stopping = threads.submit(pool.stop, 20)
            eventually(lambda: pool.closed)
            using = threads.submit(start_and_use)
            assert not started.wait(0.2)
        stopping.result(20)
        assert "done" == using.result(20)
        assert "done" == use()


def test_a_stop_that_was_broken_off_can_be_finished():
    """After Ctrl-C in a stop that waits for a lease, the next stop ends what is left and names the holder."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with replier() as endpoint:
        pool = ZMQPool()
        lease = pool.socket(SocketConfig(SocketType.REQ, endpoint))
        lease.__enter__()
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            with pytest.raises(KeyboardInterrupt):
                pool.stop(30)
        finally:
            signal.signal(signal.SIGALRM, before)
        with pytest.raises(LeaseLeaked, match="test_a_stop_that_was_broken_off"):
            pool.stop(0.1)
        lease.__exit__(None, None, None)
        pool.start()
        assert b"again" == pool.request(SocketConfig(SocketType.REQ, endpoint), b"again")
        pool.stop(10)


DROPPING = """
import gc, sys, weakref
from app.pools.core.housekeeper import housekeeper
from app.pools.core.settings import ZMQPoolSettings
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.waiting import eventually

pool = ZMQPool(ZMQPoolSettings(health_check_interval=0.01))
pool.request(SocketConfig(SocketType.REQ, sys.argv[1]), b"")
eventually(lambda: housekeeper.alive)
known = weakref.ref(pool)
del pool
eventually(lambda: gc.collect() >= 0 and known() is None)
"""


def test_a_pool_that_was_dropped_does_not_live_on_for_its_housekeeping():
    """A pool that nobody refers to any more is collected, though it was never stopped."""
    # In a process of its own: until the end of that, the pool's share of the context stays.
    with replier() as endpoint:
        subprocess.run([sys.executable, "-c", DROPPING, endpoint], check=True, timeout=60)
