"""``ZMQ_POOL_CHECK_OWNER``: a leased socket that another thread uses is found in development."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

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


def test_nothing_is_checked_unless_asked_for(monkeypatch):
    """Without the setting a lessee may hand its socket to a thread that works for it."""
    monkeypatch.delenv("ZMQ_POOL_CHECK_OWNER", raising=False)
    with ZMQPool() as pool, replier() as endpoint, ThreadPoolExecutor(1) as helper:
        with pool.socket(SocketConfig(SocketType.REQ, endpoint)) as socket:
            helper.submit(socket.send, b"x").result(30)
            assert b"x" == socket.recv()
