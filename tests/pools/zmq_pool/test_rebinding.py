"""``inproc`` endpoints that are bound anew: whoever was connected to the socket before gets to the next one."""

import asyncio
import contextlib
import threading

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import ConnectionLost, NoReply
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from app.pools.zmq_pool.attendant import attendant
from app.pools.zmq_pool.rebinding import rebinding
from tests.support.children import in_child
from tests.support.waiting import eventually_async

ENDPOINT = "inproc://rebound"
ASKING = SocketConfig(SocketType.REQ, ENDPOINT, send_timeout=1, receive_timeout=20)
SERVING = SocketConfig(SocketType.ROUTER, ENDPOINT, bind=True, receive_timeout=0.05)


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


class Nobody:
    def close(self):
        pass


def await_rounds():
    """Return when the attendant has told those who were connected: in the round after the next one at the latest."""
    for _ in range(2):
        attendant.dismiss(Nobody(), 20)


@contextlib.contextmanager
def server(pool):
    """Serve with a socket that nobody gets afterwards."""
    stop = threading.Event()
    ready = threading.Event()

    def serve():
        with pool.socket(SERVING, timeout=20) as socket:
            ready.set()
            while not stop.is_set():
                with contextlib.suppress(zmq.Again):
                    frames = socket.recv_multipart()
                    if frames[-1] != b"silence":
                        socket.send_multipart(frames)
            socket.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        stop.set()
        thread.join(20)
        await_rounds()


def lease_together(pool, count):
    with contextlib.ExitStack() as leases:
        sockets = [leases.enter_context(pool.socket(ASKING)) for _ in range(count)]
        for socket in sockets:
            socket.send(b"x")
            assert b"x" == socket.recv()


def test_no_kept_socket_is_left_to_a_server_that_is_gone(pool):
    """Idle REQs and DEALERs are replaced: each of many leases, and requests of each kind, are answered."""
    for _ in range(5):
        with server(pool):
            lease_together(pool, 5)
            assert [b"a", b"b"] == pool.request_many(ASKING, [b"a", b"b"])
            assert b"c" == asyncio.run(pool.request_async(ASKING, b"c"))


def test_a_socket_that_is_leased_meanwhile_is_not_kept(pool):
    """It goes to nobody else after the lease in which its server went away."""
    with contextlib.ExitStack() as lease:
        with server(pool):
            socket = lease.enter_context(pool.socket(ASKING))
            socket.send(b"x")
            assert b"x" == socket.recv()
    with server(pool):
        assert b"y" == pool.request(ASKING, b"y")


async def test_a_loops_connection_meets_the_next_server(pool):
    """What is on its way when the server goes fails at once; the next request is answered."""
    figures = f"{ASKING.label} (asyncio)"
    for _ in range(5):
        gone = contextlib.ExitStack()
        await asyncio.to_thread(gone.enter_context, server(pool))
        assert b"x" == await pool.request_async(ASKING, b"x")
        waiting = asyncio.create_task(pool.request_async(ASKING, b"silence"))
        await eventually_async(lambda: pool.get_stats()["pools"][figures]["in_flight"] == 1)
        await asyncio.to_thread(gone.close)
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(waiting, 20)


def test_messages_go_to_the_next_receiver(pool):
    """A kept PUSH connects to whoever binds next, also if it is leased when the one before goes."""
    receiving = SocketConfig(SocketType.PULL, ENDPOINT, bind=True, receive_timeout=20)
    pushing = SocketConfig(SocketType.PUSH, ENDPOINT)
    leased = contextlib.ExitStack()
    for number in range(5):
        with pool.socket(receiving, timeout=20) as socket:
            leased.close()
            pool.push(pushing, b"%d" % number)
            assert b"%d" % number == socket.recv()
            if number % 2:
                leased.enter_context(pool.socket(pushing))
            socket.close()
        await_rounds()


def test_a_child_tells_nobody_of_its_parents(pool):
    """The end of a socket that a forked child has bound concerns nothing of its parent's."""
    with server(pool):
        assert b"x" == pool.request(ASKING, b"x")

        def bind_and_close():
            with pool.socket(SERVING) as socket:
                socket.close()
            assert not rebinding._ended

        in_child(bind_and_close)
        assert b"x" == pool.request(ASKING, b"x")


def test_a_request_to_nobody_may_be_executed_later(pool):
    """Over inproc it cannot be known that nobody is there: the request is queued, and its error says so."""
    with pytest.raises(NoReply):
        pool.request(ASKING, b"silence", timeout=0.1)
