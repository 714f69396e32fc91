"""Connections that libzmq gives up for good: what is kept connects again by itself."""

import contextlib

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NotSent
from app.pools.zmq_pool import CurveClient, CurveServer, KeyPair, SocketConfig, SocketType, ZMQPool
from app.pools.zmq_pool.watchful import WatchfulSocket
from tests.support.echo import replier
from tests.support.waiting import eventually, eventually_async


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


@contextlib.contextmanager
def bound(kind, endpoint="tcp://127.0.0.1:*"):
    """A socket outside the pool."""
    context = zmq.Context()
    socket = context.socket(kind)
    socket.linger, socket.rcvtimeo = 0, 10_000
    if kind == zmq.SUB:
        socket.subscribe(b"")
    eventually(lambda: _binds(socket, endpoint))
    try:
        yield socket
    finally:
        socket.close(0)
        context.term()


def _binds(socket, endpoint):
    with contextlib.suppress(zmq.ZMQError):
        socket.bind(endpoint)
        return True
    return False


def down(pool, endpoint):
    return pool.health()["endpoints"].get(endpoint) is False


async def test_requests_reach_the_server_that_comes_after_a_peer_of_another_type(pool):
    """The connection that an event loop keeps, and what watches the endpoint, find the right server."""
    with bound(zmq.PUB) as wrong:
        endpoint = wrong.last_endpoint.decode()
        config = SocketConfig(SocketType.REQ, endpoint)
        with pytest.raises(NotSent, match="no ZMQ peer of a fitting type"):
            await pool.request_async(config, b"too early", timeout=0.2)
        await eventually_async(lambda: down(pool, endpoint))
    with replier(endpoint=endpoint):
        assert b"ok" == await pool.request_async(config, b"ok", timeout=20)
        await eventually_async(lambda: pool.health()["healthy"], 20)


@pytest.mark.parametrize(("kind", "right"), [("PUSH", zmq.PULL), ("PUB", zmq.SUB)])
def test_messages_reach_the_receiver_that_comes_after_a_peer_of_another_type(pool, kind, right):
    """What is queued is sent to it, in order, through the socket that is kept."""
    with bound(zmq.ROUTER) as wrong:
        endpoint = wrong.last_endpoint.decode()
        config = SocketConfig(kind, endpoint, subscriber_wait=60)
        send = pool.push if kind == "PUSH" else pool.publish
        send(config, b"0")
        eventually(lambda: down(pool, endpoint))
        send(config, b"1")
    with bound(right, endpoint) as receiver:
        assert [b"0", b"1"] == [receiver.recv() for _ in range(2)]
        eventually(lambda: pool.health()["healthy"], 20)


def test_messages_reach_a_receiver_after_a_lease(pool):
    """A socket that is leased as its connection is given up connects again after the lease."""
    with bound(zmq.ROUTER) as wrong:
        endpoint = wrong.last_endpoint.decode()
        config = SocketConfig(SocketType.PUSH, endpoint, send_timeout=0.1, subscriber_wait=0)
        with pool.socket(config) as leased:
            eventually(lambda: down(pool, endpoint))
            with pytest.raises(NotSent):
                leased.send(b"too early")
        pool.push(config, b"in time")
    with bound(zmq.PULL, endpoint) as receiver:
        assert b"in time" == receiver.recv()


class Guarded:
    """A server that admits whom a folder of keys names, and a client that is not among them yet."""

    def __init__(self, folder):
        server = KeyPair.new()
        self._folder = folder
        self._client = KeyPair.new()
        KeyPair.new().write(folder, "somebody")
        self.door = CurveServer(server, allowed=folder)
        self.client = CurveClient(server.public, self._client)

    def admit(self):
        self._client.write(self._folder, "client")


def test_who_is_admitted_later_gets_through(pool, tmp_path):
    """A push, and what watches the endpoint, connect once the client's key is on the list."""
    guarded = Guarded(tmp_path / "clients")
    serving = SocketConfig(SocketType.PULL, "tcp://127.0.0.1:*", bind=True, curve=guarded.door, receive_timeout=20)
    with pool.socket(serving) as receiver:
        endpoint = receiver.last_endpoint.decode()
        config = SocketConfig(SocketType.PUSH, endpoint, curve=guarded.client)
        pool.push(config, b"through")
        eventually(lambda: down(pool, endpoint))
        guarded.admit()
        assert b"through" == receiver.recv()
        eventually(lambda: pool.health()["healthy"], 20)


def test_a_reply_is_waited_for_although_another_connection_was_refused(pool, tmp_path, monkeypatch):
    """A client that was just admitted gets the reply of a server that takes its time."""
    guarded = Guarded(tmp_path / "clients")
    serving = SocketConfig(SocketType.ROUTER, "tcp://127.0.0.1:*", bind=True, curve=guarded.door)
    with pool.socket(serving) as server:
        config = SocketConfig(
            SocketType.REQ, server.last_endpoint.decode(), curve=guarded.client, send_timeout=0.2, receive_timeout=20
        )
        with pytest.raises(NotSent, match="the server refused this client's key"):
            pool.request(config, b"too early")
        guarded.admit()
        look, looks = WatchfulSocket.look, []

        def look_and_reply_late(socket, was_down):
            looks.append(None)
            if len(looks) == 4:
                server.send_multipart([*envelope, b"!"])
            return look(socket, was_down)

        monkeypatch.setattr(WatchfulSocket, "look", look_and_reply_late)
        with pool.socket(config) as socket:
            socket.send(b"?")
            envelope = server.recv_multipart()[:-1]
            assert b"!" == socket.recv()
