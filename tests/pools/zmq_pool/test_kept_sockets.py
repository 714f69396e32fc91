"""Sockets in which peers' messages wait are kept between leases, and the messages reach the next lessee."""

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool

PEERS = {
    SocketType.DEALER: zmq.DEALER,
    SocketType.PAIR: zmq.PAIR,
    SocketType.PULL: zmq.PUSH,
    SocketType.ROUTER: zmq.DEALER,
}


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


@pytest.fixture
def peer(pool):
    """Opens a socket outside the pool."""
    sockets = []

    def open_one(kind):
        socket = pool.context.socket(kind)
        sockets.append(socket)
        socket.linger, socket.sndtimeo, socket.rcvtimeo = 0, 10_000, 10_000
        return socket

    yield open_one
    for socket in sockets:
        socket.close()


@pytest.mark.parametrize("kind", PEERS)
def test_messages_that_wait_in_a_bound_socket_are_its_next_lessees(pool, peer, kind):
    """A lessee who reads one of several messages and ends leaves the others to the next one, also after an error."""
    config = SocketConfig(kind, "tcp://127.0.0.1:*", bind=True, receive_timeout=10)
    other, received = peer(PEERS[kind]), []
    for attempt in range(5):
        try:
            with pool.socket(config) as socket:
                if not attempt:
                    other.connect(socket.last_endpoint.decode())
                    for number in range(5):
                        other.send(b"%d" % number)
                received.append(socket.recv_multipart()[-1])
                raise LookupError
        except LookupError:
            pass
    assert [b"0", b"1", b"2", b"3", b"4"] == received


@pytest.mark.parametrize("kind", [SocketType.DEALER, SocketType.PAIR])
def test_a_bound_socket_that_only_sends_stays_bound(pool, peer, kind):
    """What was sent in one lease arrives, and so does what is sent through the same socket in the next."""
    config = SocketConfig(kind, "tcp://127.0.0.1:*", bind=True)
    other = peer(PEERS[kind])
    endpoints = set()
    for number in range(3):
        with pool.socket(config) as socket:
            endpoints.add(socket.last_endpoint.decode())
            if not number:
                other.connect(*endpoints)
            socket.send(b"%d" % number)
    assert [b"0", b"1", b"2"] == [other.recv() for _ in range(3)]
    assert 1 == len(endpoints)
