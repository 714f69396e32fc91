"""Requests of threads that compete: their sends keep the interpreter's lock, and must behave as all others do."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NoReply, NotSent
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool, asking
from app.pools.zmq_pool.backend import SMALL, send_now
from tests.support.echo import replier


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings(max_connections=4)) as pool:
        yield pool


@pytest.fixture
def compete(pool):
    """Have another thread send a request, as one that competes would have done just now."""

    def compete() -> None:
        with replier() as endpoint, ThreadPoolExecutor(1) as other:
            assert b"" == other.submit(pool.request, SocketConfig(SocketType.REQ, endpoint), b"").result(30)

    return compete


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is known to show libzmq's names")
def test_only_a_thread_that_competes_keeps_the_lock(pool, compete, monkeypatch):
    """The send that keeps the interpreter's lock is taken after another thread's request, not by a thread alone."""
    kept = []

    def noted(*arguments):
        kept.append(send_now(*arguments))
        return kept[-1]

    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        pool.request(config, b"connected")
        monkeypatch.setattr(asking, "send_now", noted)
        assert b"alone" == pool.request(config, b"alone")
        assert [] == kept
        compete()
        kept.clear()
        assert b"not alone" == pool.request(config, b"not alone")
        assert [len(b"not alone")] == kept


BODIES = [b"", b"x", b"zero\0inside", b"x" * SMALL, b"x" * (SMALL + 1), b"x" * 1_000_000]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: f"{len(body)}B")
def test_a_frame_of_any_length_arrives_whole(pool, compete, body):
    """What a competing thread sends arrives as it is, below, at and above the length up to which it keeps the lock."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        pool.request(config, b"connected")
        compete()
        with pool.socket(config) as socket:
            socket.send(body)
            assert body == socket.recv()
        compete()
        with pool.socket(config) as socket:
            socket.send_string(body.decode())
            assert body.decode() == socket.recv_string()


@pytest.mark.parametrize("frame", [bytearray(b"frame"), memoryview(b"frame"), zmq.Frame(b"frame")], ids=type)
def test_other_buffers_are_sent_as_well(pool, compete, frame):
    """A competing thread may send whatever pyzmq takes for a frame."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        compete()
        with pool.socket(config) as socket:
            socket.send(frame)
            assert b"frame" == socket.recv()


def test_errors_are_those_of_any_other_thread(pool, compete, free_endpoint):
    """A competing thread is told that nobody is there, that nothing answered, and that it is not its turn."""
    compete()
    nobody = SocketConfig(SocketType.REQ, free_endpoint, send_timeout=0.05)
    with pytest.raises(NotSent), pool.socket(nobody) as socket:
        socket.send_string("a")
    with replier(lambda frames: None) as endpoint:
        silent = SocketConfig(SocketType.REQ, endpoint, receive_timeout=0.05)
        compete()
        with pool.socket(silent) as socket:
            socket.send(b"a")
            compete()
            with pytest.raises(zmq.ZMQError) as refused:
                socket.send(b"b")
            assert zmq.EFSM == refused.value.errno
            with pytest.raises(NoReply):
                socket.recv()


def test_a_closed_socket_is_refused(pool, compete):
    """A competing thread that sends on a socket which it closed gets libzmq's error."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        for send in ("send", "send_string"):
            with pool.socket(config) as socket:
                socket.close()
                compete()
                with pytest.raises(zmq.ZMQError) as refused:
                    getattr(socket, send)({"send": b"a", "send_string": "a"}[send])
                assert zmq.ENOTSOCK == refused.value.errno


def test_every_thread_gets_its_own_reply(pool):
    """Threads that take turns on few sockets each read the reply to what they sent, whatever its length."""
    lengths = (1, 100, SMALL, SMALL + 1, 20_000)

    def ask(number: int) -> None:
        for turn in range(50):
            body = b"%d %d " % (number, turn) + b"x" * lengths[turn % len(lengths)]
            assert body == pool.request(config, body)

    with replier() as endpoint, ThreadPoolExecutor(8) as threads:
        config = SocketConfig(SocketType.REQ, endpoint)
        for done in [threads.submit(ask, number) for number in range(8)]:
            done.result(60)
    assert 0 == pool.get_stats()["metrics"]["active_connections"]


def test_requests_work_where_libzmq_cannot_be_found(pool, monkeypatch):
    """Where the platform does not show libzmq's names, competing threads send as a single one does."""
    monkeypatch.setattr(asking, "send_now", lambda *_: -1)
    with replier() as endpoint, ThreadPoolExecutor(4) as threads:
        config = SocketConfig(SocketType.REQ, endpoint)
        gate = threading.Barrier(4)

        def ask(number: int) -> bytes:
            gate.wait(30)
            return pool.request(config, b"%d" % number)

        assert [b"0", b"1", b"2", b"3"] == list(threads.map(ask, range(4)))
