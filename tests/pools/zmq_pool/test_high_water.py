"""Peers that are connected and do not read: what was accepted arrives, and the rest is refused in time."""

import asyncio
import re
import threading
import time

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NotSent
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool

FRAME = b"x" * 10_000
AT_MOST = 20_000
"""More messages than any of these queues and the system's buffers hold."""

NARROW = {"SNDHWM": 10, "SNDBUF": 4096}


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


@pytest.fixture
def peer():
    """Binds a socket that reads only when the test does; returns it and its endpoint."""
    context = zmq.Context()
    sockets = []

    def bind(kind):
        socket = context.socket(kind)
        sockets.append(socket)
        socket.linger, socket.rcvtimeo, socket.rcvhwm, socket.rcvbuf = 0, 20_000, 10, 4096
        socket.bind("tcp://127.0.0.1:*")
        return socket, socket.last_endpoint.decode()

    yield bind
    for socket in sockets:
        socket.close(0)
    context.term()


def send_until_refused(send):
    """Call ``send`` with numbered frames until it raises ``NotSent``; return how many it took."""
    for number in range(AT_MOST):
        try:
            send(b"%d;" % number + FRAME)
        except NotSent:
            return number
    raise AssertionError("nothing was refused")


def test_a_dealer_whose_peer_does_not_read_is_refused_at_its_high_water_mark(pool, peer):
    """A DEALER stops accepting when its queue is full; what it has accepted arrives in order, and then it goes on."""
    router, endpoint = peer(zmq.ROUTER)
    config = SocketConfig(SocketType.DEALER, endpoint, send_timeout=0.1, heartbeat=0, options=NARROW)
    with pool.socket(SocketConfig(SocketType.DEALER, endpoint)) as usual:
        assert 1000 == usual.sndhwm
    with pool.socket(config) as dealer:
        dealer.send(b"connected")
        assert b"connected" == router.recv_multipart()[-1]
        accepted = send_until_refused(dealer.send)
        with pytest.raises(NotSent, match=r"its queue is full\. Sending it again is safe"):
            dealer.send(FRAME)
        assert 10 <= accepted
        for number in range(accepted):
            assert b"%d;" % number + FRAME == router.recv_multipart()[-1]
        dealer.send(b"again")
        assert b"again" == router.recv_multipart()[-1]


def test_a_pusher_whose_peer_does_not_read_is_refused_when_the_backlog_is_full(pool, peer):
    """`push` fills the queue and the backlog and is refused then; all that it has accepted arrives in order."""
    pull, endpoint = peer(zmq.PULL)
    config = SocketConfig(SocketType.PUSH, endpoint, send_timeout=0.1, backlog=20, heartbeat=0, options=NARROW)
    pool.push(config, b"connected")
    assert b"connected" == pull.recv()
    accepted = send_until_refused(lambda frame: pool.push(config, frame))
    figures = pool.get_stats()["pools"][config.label]
    assert figures["queued"] in (20, 21)  # the attendant may have one in its hands while another is queued
    assert 1 == figures["refused"]
    assert 30 <= accepted
    for number in range(accepted):
        assert b"%d;" % number + FRAME == pull.recv()
    pool.push(config, b"again")
    assert b"again" == pull.recv()


async def test_requests_to_a_peer_that_does_not_read_are_bounded(pool, peer):
    """400 requests are on the way, the backlog is queued, and more are refused at once; the others are answered."""
    router, endpoint = peer(zmq.ROUTER)
    config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=60, backlog=10, heartbeat=0)
    first = asyncio.create_task(pool.request_async(config, b"first"))
    assert await asyncio.to_thread(router.poll, 20_000)
    router.send_multipart(router.recv_multipart())
    assert b"first" == await first
    bodies = [b"%d" % n for n in range(410)]
    tasks = [asyncio.create_task(pool.request_async(config, body)) for body in bodies]
    await asyncio.sleep(0)  # each has begun
    for _ in range(3):
        with pytest.raises(NotSent, match="10 requests wait to be sent"):
            await pool.request_async(config, b"one too many")
    figures = pool.get_stats()["pools"][f"{config.label} (asyncio)"]
    assert (400, 10) == (figures["in_flight"], figures["waiting"])

    def answer():
        for _ in bodies:
            router.send_multipart(router.recv_multipart())

    answering = threading.Thread(target=answer)
    answering.start()
    assert bodies == await asyncio.wait_for(asyncio.gather(*tasks), 30)
    await asyncio.to_thread(answering.join, 10)


@pytest.mark.parametrize("kind", [SocketType.PUSH, SocketType.DEALER])
def test_a_peer_that_does_not_read_does_not_hold_up_the_stop(peer, kind, caplog):
    """A pool whose messages nobody takes stops when its time and its sockets' linger are over."""
    sink, endpoint = peer(zmq.PULL if kind is SocketType.PUSH else zmq.ROUTER)
    config = SocketConfig(kind, endpoint, send_timeout=0.05, backlog=20, linger=0.1, heartbeat=0, options=NARROW)
    pool = ZMQPool(ZMQPoolSettings())
    if kind is SocketType.PUSH:
        send_until_refused(lambda frame: pool.push(config, frame))
    else:
        with pool.socket(config) as dealer:
            send_until_refused(dealer.send)
    began = time.monotonic()
    pool.stop(timeout=0.2)
    assert time.monotonic() - began < 10
    if kind is SocketType.PUSH:
        assert re.search(r"2[01] messages could not be sent before the pool stopped", caplog.text)
    assert sink.poll(0)
