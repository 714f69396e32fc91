"""What the pool knows of its endpoints: by the connections that there are, and without a message to anyone."""

import itertools

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.zmq_pool import CurveClient, CurveServer, KeyPair, SocketConfig, SocketType, ZMQPool
from tests.support.waiting import eventually


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


class Peers:
    """Sockets outside the pool, one after the other at an endpoint."""

    def __init__(self):
        self._context = zmq.Context()
        self._open = []

    def bound(self, kind, endpoint="tcp://127.0.0.1:*"):
        socket = self._context.socket(kind)
        socket.linger, socket.rcvtimeo = 0, 10_000
        self._open.append(socket)
        eventually(lambda: self._bind(socket, endpoint))
        return socket, socket.last_endpoint.decode()

    @staticmethod
    def _bind(socket, endpoint):
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                raise
            return False
        return True

    def end(self):
        for socket in self._open:
            socket.close(0)
        self._context.term()


@pytest.fixture
def peers():
    peers = Peers()
    yield peers
    peers.end()


def up(pool, label):
    return pool.get_stats()["pools"][label].get("endpoint_up", "not watched")


@pytest.mark.parametrize("order", list(itertools.permutations([SocketType.REQ, SocketType.DEALER])), ids=str)
def test_what_is_known_does_not_depend_on_who_came_first(pool, peers, order):
    """A peer that is a DEALER is down to a REQ and not known to a DEALER, and up to both once it is a ROUTER."""
    dealer, endpoint = peers.bound(zmq.DEALER)
    leases = [pool.socket(SocketConfig(kind, endpoint)) for kind in order]
    for lease in leases:
        lease.__enter__()
    eventually(lambda: up(pool, f"REQ {endpoint}") is False)
    assert up(pool, f"DEALER {endpoint}") is None
    assert {endpoint: False} == pool.health()["endpoints"]
    (reason,) = pool.health()["reasons"]
    assert reason.endswith("is no ZMQ peer of a fitting type")
    dealer.close(0)
    peers.bound(zmq.ROUTER, endpoint)

    def both_up():
        pool.sweep()  # housekeeping, which tries again
        return [True, True] == [up(pool, f"{kind.name} {endpoint}") for kind in order]

    eventually(both_up)
    assert {"healthy": True, "reasons": [], "endpoints": {endpoint: True}} == pool.health()
    for lease in leases:
        lease.__exit__(None, None, None)


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
def test_a_refused_handshake_is_not_a_peer_of_another_type(pool, kind):
    """A server with another CURVE key is down, and stays so, to REQ and DEALER alike."""
    server = SocketConfig("ROUTER", "tcp://127.0.0.1:*", bind=True, curve=CurveServer(KeyPair.new()))
    with pool.socket(server) as router:
        endpoint = router.last_endpoint.decode()
        with pool.socket(SocketConfig(kind, endpoint, curve=CurveClient(KeyPair.new().public))):
            seen = []
            eventually(lambda: seen.append(pool.health()["endpoints"][endpoint]) or seen.count(False) > 20)
            assert {False} == set(seen[seen.index(False) :])
            assert any("the handshake failed" in reason for reason in pool.health()["reasons"])
