"""Endpoints come and go: what nobody uses any more costs nothing and worries nobody."""

import asyncio
import gc
import threading
import weakref

import psutil
import pytest

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NotSent
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from app.pools.zmq_pool.sentinel import Sentinels
from tests.support.echo import replier
from tests.support.echo_process import echo_process
from tests.support.waiting import eventually, eventually_async

ENDPOINTS = 20


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings(max_idle_time=0.02, health_check_interval=0.02)) as pool:
        with replier() as endpoint:
            pool.request(SocketConfig(SocketType.REQ, endpoint), b"")
        eventually(lambda: not pool.get_stats()["pools"])
        yield pool


def test_endpoints_used_once_leave_no_descriptor_behind(pool):
    """After the idle time nothing is left of them, in the process, in the statistics and in `health()`."""
    process = psutil.Process()
    before = process.num_fds()
    for _ in range(ENDPOINTS):
        with replier() as endpoint:
            assert b"hello" == pool.request(SocketConfig(SocketType.REQ, endpoint), b"hello")
    eventually(lambda: not pool.get_stats()["pools"])
    assert {} == pool.health()["endpoints"]
    eventually(lambda: process.num_fds() <= before)


async def test_endpoints_asked_once_from_a_loop_leave_no_descriptor_behind(pool):
    """What `request_async` opened for an endpoint is closed after the idle time, while its loop runs on."""
    process = psutil.Process()
    with replier() as endpoint:
        assert b"first" == await pool.request_async(SocketConfig(SocketType.REQ, endpoint), b"first")
    await eventually_async(lambda: not pool.get_stats()["pools"])
    before = process.num_fds()
    for _ in range(ENDPOINTS):
        with replier() as endpoint:
            assert b"hello" == await pool.request_async(SocketConfig(SocketType.REQ, endpoint), b"hello")
    await eventually_async(lambda: not pool.get_stats()["pools"])
    assert {} == pool.health()["endpoints"]
    await eventually_async(lambda: process.num_fds() <= before)


async def test_a_request_that_is_waited_for_keeps_its_connection(pool):
    """A request without its reply keeps its connection longer than the idle time, and the next one has one, too."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=20)
        asking = asyncio.create_task(pool.request_async(config, b"silence"))
        for _ in range(20):
            pool.sweep()
            assert b"hello" == await pool.request_async(config, b"hello")
        for _ in range(50):
            pool.sweep()
            await asyncio.sleep(0.001)
        assert 1 == pool.get_stats()["pools"][f"{config.label} (asyncio)"]["in_flight"]
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await eventually_async(lambda: not pool.get_stats()["pools"])
        assert b"again" == await pool.request_async(config, b"again")


def test_an_endpoint_that_is_gone_is_forgotten_by_health(pool, free_endpoint):
    """An endpoint that nobody asks any more does not make the pool unhealthy for ever."""
    config = SocketConfig(SocketType.REQ, free_endpoint, send_timeout=0.5)
    with pytest.raises(NotSent):
        pool.request(config, b"hello")
    eventually(lambda: pool.health()["healthy"] and not pool.health()["endpoints"])


def test_an_endpoint_in_use_is_kept(pool):
    """A lease that is out and one that comes again and again keep the configuration, and its statistics."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        with pool.socket(config) as socket:
            for _ in range(50):
                pool.sweep()
            socket.send(b"still here")
            assert b"still here" == socket.recv()
            eventually(lambda: pool.health()["endpoints"] == {endpoint: True})


def test_who_meets_an_endpoint_as_it_is_forgotten_is_served(pool):
    """A lease looked up before and entered after works, ends with the pool, and lives no longer than that."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        lease = pool.socket(config)
        desk = weakref.ref(pool._desks.get(config))
        eventually(lambda: pool._desks.get(config) is None)
        with lease as socket:
            socket.send(b"late")
            assert b"late" == socket.recv()
            assert 1 == sum(each["active"] for each in pool.get_stats()["pools"].values())
            assert b"new" == pool.request(config, b"new")
        del lease, socket
        eventually(lambda: gc.collect() >= 0 and desk() is None)


def test_an_endpoint_is_watched_for_who_meets_it_as_it_is_forgotten(pool, monkeypatch):
    """A lease that begins while the watch is being ended has one: it is told that the server went away."""
    leave = Sentinels.leave
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=20)
        lease = pool.socket(config)
        pool.request(config, b"x")
        leased, left = threading.Event(), threading.Event()

        def leave_late(sentinels, config, user):
            leased.wait(20)
            leave(sentinels, config, user)
            left.set()

        monkeypatch.setattr(Sentinels, "leave", leave_late)
        desk = pool._desks.get(config)
        eventually(lambda: pool._desks.get(config) is None)
        socket = lease.__enter__()
        leased.set()
        assert left.wait(20)
        eventually(lambda: desk.reachability is not None and desk.reachability.up)
    eventually(lambda: desk.reachability.up is False)
    socket.close()
    lease.__exit__(None, None, None)
