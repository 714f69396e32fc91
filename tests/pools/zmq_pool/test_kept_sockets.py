"""Sockets in which peers' messages wait are kept between leases, and the messages reach the next lessee."""

import contextlib
import time

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.waiting import eventually

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


@pytest.fixture
def lease_some(pool, peer):
    """Leases so many PULLs at once that are connected to one PUSH; returns it, the configuration and the leases."""
    stack = contextlib.ExitStack()

    def lease_some(count, pool=pool):
        push = peer(zmq.PUSH)
        push.bind("tcp://127.0.0.1:*")
        config = SocketConfig(SocketType.PULL, push.last_endpoint.decode(), receive_timeout=10)
        sockets = [stack.enter_context(pool.socket(config)) for _ in range(count)]
        sent, received, served = 0, 0, set()

        def all_are_served():
            nonlocal sent, received
            if len(served) < count:
                push.send(b"warm")
                sent += 1
            for socket in sockets:
                if socket.poll(5):
                    socket.recv()
                    received += 1
                    served.add(socket)
            return len(served) == count and sent == received

        eventually(all_are_served)
        return push, config, sockets, stack.close

    with stack:
        yield lease_some


def test_messages_reach_the_next_lessees_wherever_they_wait(pool, lease_some):
    """Messages that a PUSH spread over several idle PULLs are received by lessees who come one after the other."""
    push, config, _, end_leases = lease_some(3)
    end_leases()
    for number in range(90):
        push.send(b"%d" % number)
    received = []

    def all_are_received():
        with pool.socket(config) as socket:
            if socket.poll(20):
                received.append(int(socket.recv()))
        return len(received) == 90

    eventually(all_are_received)
    assert list(range(90)) == sorted(received)


async def test_messages_reach_the_next_tasks_wherever_they_wait(pool, lease_some):
    """In asyncio, too, a lessee is given a PULL in which messages wait."""
    push, config, _, end_leases = lease_some(3)
    end_leases()
    for number in range(30):
        push.send(b"%d" % number)
    received, until = [], time.monotonic() + 10
    while len(received) < 30 and time.monotonic() < until:
        async with pool.socket(config) as socket:
            if await socket.poll(20):
                received.append(int(await socket.recv()))
    assert list(range(30)) == sorted(received)


def test_idle_sockets_that_nobody_needs_are_closed_when_they_are_empty(lease_some):
    """Housekeeping closes PULLs that were idle too long, but for the last one and those in which messages wait."""
    with ZMQPool(ZMQPoolSettings(max_idle_time=0.01)) as pool:
        push, config, sockets, end_leases = lease_some(3, pool)

        def swept_to(total):
            pool.sweep()
            return pool.get_stats()["pools"][config.label]["total"] == total

        for _ in sockets:
            push.send(b"waits")
        assert all(socket.poll(10_000) for socket in sockets)
        end_leases()
        until = time.monotonic() + 0.1
        eventually(lambda: time.monotonic() > until)
        assert swept_to(3)
        for _ in sockets:
            with pool.socket(config) as socket:
                assert b"waits" == socket.recv()
        eventually(lambda: swept_to(1))
        for _ in range(5):
            assert swept_to(1)

        def one_arrives():  # not each: what is sent while the others still close is lost with them
            push.send(b"after")
            with pool.socket(config) as socket:
                return socket.poll(20) and socket.recv() == b"after"

        eventually(one_arrives)
