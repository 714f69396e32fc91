"""``ZMQ_POOL_CHECK_OWNER``: a leased socket that another thread uses is found in development."""

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import ForeignThread
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo import replier


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setenv("ZMQ_POOL_CHECK_OWNER", "1")
    with ZMQPool(ZMQPoolSettings(max_connections=2)) as pool:
        yield pool


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
@pytest.mark.parametrize("use", ["send", "send_string", "send_multipart", "recv", "recv_string", "poll"])
def test_another_threads_use_is_an_error_that_names_both(pool, kind, use):
    """Whatever another thread does with a leased socket raises, names both threads, and leaves the socket as it is."""
    arguments = {"send": [b"x"], "send_string": ["x"], "send_multipart": [[b"x"]]}.get(use, [])
    with replier() as endpoint, ThreadPoolExecutor(1, "stranger") as stranger:
        config = SocketConfig(kind, endpoint)
        for _ in range(2):  # a new socket, and one that was used before
            with pool.socket(config) as socket:
                with pytest.raises(ForeignThread, match=r"'MainThread'.*'stranger_0'") as caught:
                    stranger.submit(lambda socket=socket: getattr(socket, use)(*arguments)).result(30)
                assert "stranger_0" == pickle.loads(pickle.dumps(caught.value)).user
                socket.send_multipart([b"", b"mine"] if kind is SocketType.DEALER else [b"mine"])
                assert b"mine" == socket.recv_multipart()[-1]


def test_threads_that_lease_in_turn_are_left_alone(pool):
    """A socket that goes from lessee to lessee may be used by each in its time, by tasks as well."""
    with replier() as endpoint, ThreadPoolExecutor(4) as threads:
        config = SocketConfig(SocketType.REQ, endpoint)
        bodies = [b"%d" % number for number in range(100)]
        assert bodies == list(threads.map(lambda body: pool.request(config, body), bodies))


async def test_tasks_may_use_what_threads_have_leased_before(pool):
    """A lease of a task belongs to its event loop's thread, whoever had the socket before."""
    with replier() as endpoint, ThreadPoolExecutor(1) as thread:
        config = SocketConfig(SocketType.REQ, endpoint, max_connections=1)
        for _ in range(3):
            assert b"a" == thread.submit(pool.request, config, b"a").result(30)
            async with pool.socket(config) as socket:
                await socket.send(b"b")
                assert b"b" == await socket.recv()


async def test_a_tasks_socket_is_checked_from_its_first_lease_on(pool):
    """A thread that a task hands its leased socket to is found, even if the socket is new."""
    with replier() as endpoint, ThreadPoolExecutor(1, "stranger") as stranger:
        config = SocketConfig(SocketType.DEALER, endpoint)
        for _ in range(2):
            async with pool.socket(config) as socket:
                loop = asyncio.get_running_loop()
                with pytest.raises(ForeignThread, match="stranger_0"):
                    await loop.run_in_executor(stranger, lambda socket=socket: socket.get(zmq.EVENTS))


def test_a_detached_socket_is_anyones(pool):
    """Whoever detaches a socket may give it to another thread, as libzmq allows it."""
    with replier() as endpoint, ThreadPoolExecutor(1) as other:
        lease = pool.socket(SocketConfig(SocketType.REQ, endpoint))
        with lease as socket:
            assert socket is lease.detach()
        try:
            other.submit(socket.send, b"x").result(30)
            assert b"x" == other.submit(socket.recv).result(30)
        finally:
            socket.close()


@pytest.mark.parametrize("kind", [SocketType.PULL, SocketType.REQ, SocketType.SUB])
def test_the_pool_closes_what_any_thread_had(pool, free_endpoint, kind, caplog):
    """A stop closes the sockets that other threads had leased, without an objection."""
    config = SocketConfig(kind, free_endpoint, bind=kind is not SocketType.REQ)

    def lease():
        with pool.socket(config):
            pass

    with ThreadPoolExecutor(1) as other:
        other.submit(lease).result(30)
    assert 1 == pool.get_stats()["pools"][config.label]["total"] or kind is SocketType.SUB
    pool.stop()
    assert not pool.get_stats()["pools"].get(config.label, {}).get("total")
    assert "" == caplog.text


def test_nothing_is_checked_unless_asked_for(monkeypatch):
    """Without the setting a lessee may hand its socket to a thread that works for it."""
    monkeypatch.delenv("ZMQ_POOL_CHECK_OWNER", raising=False)
    with ZMQPool() as pool, replier() as endpoint, ThreadPoolExecutor(1) as helper:
        with pool.socket(SocketConfig(SocketType.REQ, endpoint)) as socket:
            helper.submit(socket.send, b"x").result(30)
            assert b"x" == socket.recv()
