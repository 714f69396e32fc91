"""Options that say who a socket is and when a peer counts as lost: each socket has its own, whatever watches it."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from app.pools.errors import ConnectionLost, NotSent
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo import replier
from tests.support.echo_process import echo_process
from tests.support.waiting import eventually

NAMED = {"ROUTING_ID": "worker-1"}


@pytest.fixture
def pool():
    with ZMQPool() as pool:
        yield pool


@pytest.fixture
def router():
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger, router.rcvtimeo = 0, 10_000
    router.bind("tcp://127.0.0.1:*")
    yield router
    router.close(0)
    context.term()


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
def test_a_named_socket_is_answered(pool, router, kind):
    """A ROUTER knows the leased socket by its ROUTING_ID, and what it sends to that name reaches the lessee."""
    config = SocketConfig(
        kind, router.last_endpoint.decode(), options=NAMED, max_connections=1, receive_timeout=10, send_timeout=10
    )
    for number in range(3):
        with pool.socket(config) as socket:
            socket.send(b"%d" % number)
            message = router.recv_multipart()
            assert (b"worker-1", b"%d" % number) == (message[0], message[-1])
            router.send_multipart(message)
            assert b"%d" % number == socket.recv()


@pytest.mark.parametrize("option", ["PROBE_ROUTER", "REQ_CORRELATE", "REQ_RELAXED"])
def test_what_watches_an_endpoint_is_nobody_to_it(pool, router, option):
    """The first message that a ROUTER gets is from the leased socket, and is the only one of its kind."""
    config = SocketConfig(SocketType.REQ, router.last_endpoint.decode(), options={option: 1}, send_timeout=10)
    with pool.socket(config) as socket:
        socket.send(b"request")
        messages = [router.recv_multipart() for _ in range(2 if option == "PROBE_ROUTER" else 1)]
        assert b"request" == messages[-1][-1]
        assert 1 == len({message[0] for message in messages})
        assert not router.poll(0)
        router.send_multipart(messages[-1])
        assert b"request" == socket.recv()


@pytest.mark.parametrize("options", [NAMED, {"REQ_CORRELATE": 1}, {"REQ_RELAXED": 1, "REQ_CORRELATE": 1}])
async def test_options_of_a_req_are_not_those_of_the_connections_beside_it(pool, options):
    """Multiplexed requests and `request_many` are answered, beside an idle REQ with a name or options of its own."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, options=options, max_connections=1, receive_timeout=10)
        for _ in range(2):
            assert b"leased" == pool.request(config, b"leased")
            assert b"multiplexed" == await pool.request_async(config, b"multiplexed")
            assert [b"1", b"2"] == pool.request_many(config, [b"1", b"2"])


def test_each_configuration_has_its_own_heartbeats(pool):
    """A request without heartbeats outwaits a server that stands still; one with them, to the same place, does not."""
    with echo_process("ROUTER") as server, ThreadPoolExecutor(1) as threads:
        quick = SocketConfig(SocketType.REQ, server.endpoint, heartbeat=0.1, send_timeout=0.3, receive_timeout=30)
        calm = SocketConfig(SocketType.REQ, server.endpoint, heartbeat=0, receive_timeout=30)

        def warm():  # with such heartbeats a busy machine loses connections
            with contextlib.suppress(NotSent, ConnectionLost):
                return b"warm" == pool.request(quick, b"warm")

        eventually(warm)
        assert b"warm" == pool.request(calm, b"warm")
        server.freeze()
        patient = threads.submit(pool.request, calm, b"patient")
        with pytest.raises((ConnectionLost, NotSent)):
            pool.request(quick, b"quick")
        for _ in range(3):
            with pytest.raises(NotSent):
                pool.request(quick, b"quick")
        server.thaw()
        assert b"patient" == patient.result(30)
