"""What the pool knows of its endpoints: by the connections that there are, and without a message to anyone."""

import gc
import itertools
import os

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import LeaseLeaked
from app.pools.zmq_pool import CurveClient, CurveServer, KeyPair, SocketConfig, SocketType, ZMQPool
from app.pools.zmq_pool.attendant import attendant
from app.pools.zmq_pool.witnesses import Witness
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
    for _ in range(20):
        pool.sweep()
        assert up(pool, f"DEALER {endpoint}") is None
        assert {endpoint: False} == pool.health()["endpoints"]
        (reason,) = pool.health()["reasons"]
        assert "the handshake failed" in reason
    dealer.close(0)
    peers.bound(zmq.ROUTER, endpoint)

    eventually(lambda: [True, True] == [up(pool, f"{kind.name} {endpoint}") for kind in order], 20)
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


@pytest.mark.parametrize("wrong", [zmq.ROUTER, zmq.SUB])
def test_what_was_pushed_to_a_peer_of_another_type_waits_for_the_right_one(pool, peers, wrong):
    """libzmq gives such a peer up for good; housekeeping opens another socket, and nothing that was queued is lost."""
    peer, endpoint = peers.bound(wrong)
    config = SocketConfig(SocketType.PUSH, endpoint)
    pool.push(config, b"before")
    eventually(lambda: {endpoint: False} == pool.health()["endpoints"])
    pool.sweep()
    peer.close(0)
    pull, _ = peers.bound(zmq.PULL, endpoint)

    def arrived():
        pool.sweep()
        return pull.poll(50)

    eventually(arrived)
    pool.push(config, b"after")
    assert [b"before", b"after"] == [pull.recv(), pull.recv()]


WITNESSED = [
    (SocketType.PULL, zmq.PUSH),
    (SocketType.PAIR, zmq.PAIR),
    (SocketType.ROUTER, zmq.DEALER),
    (SocketType.REP, zmq.REQ),
]


@pytest.mark.parametrize(("kind", "other"), WITNESSED)
def test_what_a_leased_socket_sees_of_its_peer_is_known(pool, peers, kind, other):
    """An endpoint to which a peer would hand messages is judged by the leased socket's connection, while it lives."""
    peer, endpoint = peers.bound(other)
    config = SocketConfig(kind, endpoint, receive_timeout=10)
    with pool.socket(config) as socket:
        eventually(lambda: {endpoint: True} == pool.health()["endpoints"])
        peer.send(b"for the lessee alone")
        assert b"for the lessee alone" == socket.recv_multipart()[-1]
        if kind is SocketType.REP:
            socket.send(b"")
            assert b"" == peer.recv()
        peer.close(0)
        eventually(lambda: {endpoint: False} == pool.health()["endpoints"])
        assert [f"{endpoint} is down: the connection was lost"] == pool.health()["reasons"]
        peer, _ = peers.bound(other, endpoint)
        eventually(lambda: {endpoint: True} == pool.health()["endpoints"])
        assert 1 == pool.get_stats()["pools"][config.label]["reconnects"]
    if kind is SocketType.PULL:  # which is kept
        assert {endpoint: True} == pool.health()["endpoints"]
    else:
        assert {} == pool.health()["endpoints"]


@pytest.mark.parametrize("kind", [kind for kind, _ in WITNESSED])
def test_where_nobody_listens_is_known(pool, free_endpoint, kind):
    """An endpoint of any type at which nobody listens is down, and says so."""
    with pool.socket(SocketConfig(kind, free_endpoint)):
        eventually(lambda: {free_endpoint: False} == pool.health()["endpoints"])
        assert [f"{free_endpoint} is down: nobody listens there"] == pool.health()["reasons"]


def test_a_lessee_may_have_a_monitor_of_its_own(pool, peers):
    """It gets all events of the socket, which it gives up afterwards; the next socket is watched again."""
    _, endpoint = peers.bound(zmq.PAIR)
    config = SocketConfig(SocketType.PAIR, endpoint)
    for _ in range(3):
        with pool.socket(config) as socket:
            eventually(lambda: {endpoint: True} == pool.health()["endpoints"])
            monitor = socket.get_monitor_socket()
            assert {} == pool.health()["endpoints"]
            socket.connect(endpoint)
            assert monitor.poll(10_000)
            socket.disable_monitor()
            monitor.close(0)


@pytest.mark.parametrize("kind", [kind for kind, _ in WITNESSED])
def test_watching_leased_sockets_leaves_nothing(pool, free_endpoint, kind):
    """However they end, by a lease's end, a close or a detach, many leases take no more descriptors than one."""

    def lease(end):
        with pool.socket(SocketConfig(kind, free_endpoint)) as socket:
            end(socket)

    def detach():
        lease = pool.socket(SocketConfig(kind, free_endpoint))
        with lease:
            lease.detach().close(0)

    def lose():
        pool.socket(SocketConfig(kind, free_endpoint)).__enter__()
        gc.collect()

    def use_all():
        lease(lambda socket: None)
        lease(lambda socket: socket.close())
        detach()
        with pytest.warns(ResourceWarning):
            lose()
        pool.sweep()

    use_all()
    eventually(
        lambda: not [witness for witness in attendant._watched if isinstance(witness, Witness) and witness.ended]
    )
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        use_all()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)


@pytest.mark.parametrize("kind", [kind for kind, _ in WITNESSED])
def test_a_pool_stops_beside_a_witnessed_lease(peers, kind):
    """A stop with the lease still out ends, and so does the context once the socket is closed."""
    _, endpoint = peers.bound(zmq.DEALER)
    pool = ZMQPool(ZMQPoolSettings())
    lease = pool.socket(SocketConfig(kind, endpoint))
    socket = lease.__enter__()
    context = socket.context
    with pytest.raises(LeaseLeaked):
        pool.stop(timeout=0.1)
    lease.__exit__(None, None, None)
    eventually(lambda: context.closed)
    assert not any(isinstance(each, Witness) for each in attendant._watched)
