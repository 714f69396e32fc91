"""Servers that are killed, stopped and restarted under load: each request has its own reply or the right error."""

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import ConnectionLost, NoReply, NotSent
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo_process import EchoProcess, echo_process
from tests.support.waiting import eventually, eventually_async

ENDS = {"killed": (EchoProcess.kill, EchoProcess.start), "frozen": (EchoProcess.freeze, EchoProcess.thaw)}
"""How a server ceases to answer, and how it comes back."""

CALLERS = 16


class Outcomes:
    """What became of each request, as its caller was told."""

    def __init__(self):
        self.replied, self.not_sent, self.maybe_executed = [], [], []

    def ask(self, pool, config, body):
        try:
            assert body == pool.request(config, body)
        except (NotSent, NoReply, ConnectionLost) as error:
            self.note(error, body)
        else:
            self.replied.append(body)

    async def ask_async(self, pool, config, body):
        try:
            assert body == await pool.request_async(config, body)
        except (NotSent, NoReply, ConnectionLost) as error:
            self.note(error, body)
        else:
            self.replied.append(body)

    def note(self, error, body):
        match error:
            case NotSent():
                self.not_sent.append(body)
            case ConnectionLost():
                (self.maybe_executed if error.maybe_executed else self.not_sent).append(body)
            case _:
                self.maybe_executed.append(body)

    def agree_with(self, executed):
        """Assert that what the server has seen is what the callers were told."""
        seen = set(executed)
        assert len(executed) == len(seen)  # nothing was sent twice
        assert set(self.replied) <= seen
        assert not seen & set(self.not_sent)
        assert seen <= {*self.replied, *self.maybe_executed}


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings(max_connections=CALLERS)) as pool:
        yield pool


@pytest.fixture
def callers():
    with ThreadPoolExecutor(CALLERS) as threads:
        yield threads


@pytest.fixture
def server(tmp_path):
    with echo_process("ROUTER", tmp_path / "executed") as server:
        yield server


def connect_all(pool, config):
    """Have a socket for each caller that is connected, and idle."""
    with ExitStack() as leases:
        for socket in [leases.enter_context(pool.socket(config)) for _ in range(CALLERS)]:
            socket.send(b"warm")
            assert b"warm" == socket.recv()


def reached(server, bodies):
    """Say whether the server has got all of these requests."""
    return set(bodies) <= set(server.executed())


@pytest.mark.parametrize("end", ENDS)
def test_what_was_in_flight_is_lost_and_what_came_later_was_not_sent(pool, callers, server, end):
    """Of a server that is killed or stops, requests in flight fail at once as maybe executed, later ones as not sent.

    When it is back, everyone is served, and what was not sent is not executed either.
    """
    take_away, bring_back = ENDS[end]
    config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=600, send_timeout=0.2, heartbeat=0.1)
    connect_all(pool, config)
    eventually(lambda: pool.health()["endpoints"][server.endpoint])
    silent = [b"silence %d" % n for n in range(CALLERS)]
    asking = [callers.submit(pool.request, config, body) for body in silent]
    eventually(lambda: reached(server, silent))
    take_away(server)
    for each in asking:
        with pytest.raises(ConnectionLost, match="went down before the reply came") as lost:
            each.result(20)
        assert isinstance(lost.value, NoReply)
        assert lost.value.maybe_executed
    late = [b"late %d" % n for n in range(CALLERS)]
    for each in [callers.submit(pool.request, config, body) for body in late]:
        with pytest.raises(NotSent, match="Sending it again is safe"):
            each.result(20)
    bring_back(server)
    patient = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=20, send_timeout=20, heartbeat=0.1)
    own = [b"%d" % n for n in range(50 * CALLERS)]
    assert own == list(callers.map(lambda body: pool.request(patient, body), own))
    assert not set(late) & set(server.executed())
    assert 0 == pool.get_stats()["metrics"]["active_connections"]


def test_requests_to_a_stopped_server_end_with_their_time_limit(pool, callers, server):
    """Without heartbeats, what a stopped server was sent is NoReply, and what finds no connection to it is NotSent.

    Its late answers, when it goes on, reach nobody.
    """
    config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=0.3, send_timeout=0.2, heartbeat=0)
    connect_all(pool, config)
    server.freeze()
    all_leased = threading.Barrier(CALLERS)

    def ask(body):
        with pool.socket(config) as socket:
            all_leased.wait(20)  # so that each has a socket that is connected
            socket.send(body)
            socket.recv()

    for each in [callers.submit(ask, b"stopped %d" % n) for n in range(CALLERS)]:
        with pytest.raises(NoReply) as no_reply:
            each.result(20)
        assert not isinstance(no_reply.value, ConnectionLost)
    late = [b"late %d" % n for n in range(CALLERS)]
    for each in [callers.submit(pool.request, config, body) for body in late]:
        with pytest.raises(NotSent):
            each.result(20)
    server.thaw()
    patient = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=20, send_timeout=20)
    own = [b"%d" % n for n in range(50 * CALLERS)]
    assert own == list(callers.map(lambda body: pool.request(patient, body), own))
    assert not set(late) & set(server.executed())


def test_a_server_that_was_stopped_for_a_while_answers_everyone(pool, callers, server):
    """Requests in flight to a server that stops and goes on within their time limit get their own replies."""
    config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=60, heartbeat=0)
    connect_all(pool, config)
    for turn in range(3):
        server.freeze()
        bodies = [b"%d.%d" % (turn, n) for n in range(CALLERS)]
        asking = [callers.submit(pool.request, config, body) for body in bodies]
        eventually(lambda: pool.get_stats()["metrics"]["active_connections"] == CALLERS)
        assert not any(each.done() for each in asking)
        server.thaw()
        assert bodies == [each.result(60) for each in asking]
    assert CALLERS == pool.get_stats()["metrics"]["total_connections"]


@pytest.mark.parametrize("end", ENDS)
def test_errors_under_load_say_what_the_server_did(pool, callers, server, end):
    """Threads that ask on and on while the server goes and comes are told the truth about each request.

    What was replied to was executed, what was not sent was not, and nothing was executed twice.
    """
    take_away, bring_back = ENDS[end]
    config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=1, send_timeout=0.1, heartbeat=0.1)
    outcomes, stop = Outcomes(), threading.Event()

    def ask_on(name):
        for n in itertools.takewhile(lambda _: not stop.is_set(), itertools.count()):
            outcomes.ask(pool, config, b"%d.%d" % (name, n))

    asking = [callers.submit(ask_on, name) for name in range(CALLERS)]
    try:
        for _ in range(3):
            replied = len(outcomes.replied)
            eventually(lambda replied=replied: len(outcomes.replied) > replied + 200, 30)
            lost, refused = len(outcomes.maybe_executed), len(outcomes.not_sent)
            take_away(server)
            eventually(lambda lost=lost: len(outcomes.maybe_executed) > lost, 30)
            eventually(lambda refused=refused: len(outcomes.not_sent) > refused, 30)
            bring_back(server)
        replied = len(outcomes.replied)
        eventually(lambda: len(outcomes.replied) > replied + 200, 30)
    finally:
        stop.set()
    for each in asking:
        each.result(30)
    outcomes.agree_with(server.executed())
    assert 0 == pool.get_stats()["metrics"]["active_connections"]


@pytest.mark.parametrize("end", ENDS)
async def test_errors_in_asyncio_say_what_the_server_did(pool, server, end):
    """Tasks whose requests share a connection are told the truth about each one, while the server goes and comes."""
    take_away, bring_back = ENDS[end]
    config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=1, heartbeat=0.1)
    outcomes, stop = Outcomes(), asyncio.Event()

    async def ask_on(name):
        for n in itertools.takewhile(lambda _: not stop.is_set(), itertools.count()):
            await outcomes.ask_async(pool, config, b"%d.%d" % (name, n))

    tasks = [asyncio.create_task(ask_on(name)) for name in range(100)]
    for _ in range(3):
        replied = len(outcomes.replied)
        await eventually_async(lambda replied=replied: len(outcomes.replied) > replied + 500, 30)
        refused = len(outcomes.not_sent)
        take_away(server)
        await eventually_async(lambda refused=refused: len(outcomes.not_sent) > refused, 30)
        await asyncio.to_thread(bring_back, server)
    replied = len(outcomes.replied)
    await eventually_async(lambda: len(outcomes.replied) > replied + 500, 30)
    stop.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    assert outcomes.maybe_executed  # once at least; a server may have answered all before it is killed
    outcomes.agree_with(server.executed())


def test_a_request_that_was_not_sent_is_never_executed(pool, callers, free_endpoint, tmp_path):
    """Requests to nobody are NotSent, and a server that comes later does not get them."""
    config = SocketConfig(SocketType.REQ, free_endpoint, send_timeout=0.05)
    for each in [callers.submit(pool.request, config, b"%d" % n) for n in range(3 * CALLERS)]:
        with pytest.raises(NotSent):
            each.result(20)
    server = EchoProcess("ROUTER", free_endpoint, tmp_path / "executed")
    try:
        patient = SocketConfig(SocketType.REQ, free_endpoint, send_timeout=20)
        assert b"now" == pool.request(patient, b"now")
        assert [b"now"] == server.executed()
    finally:
        server.kill()


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
def test_a_stopped_server_is_not_judged_healthy(pool, server, kind):
    """Heartbeats say that a server has stopped, though its connections are open, and that it goes on."""
    config = SocketConfig(kind, server.endpoint, heartbeat=0.1)
    with pool.socket(config):
        pass
    for _ in range(2):
        eventually(lambda: pool.health()["endpoints"][server.endpoint] is True)
        server.freeze()
        eventually(lambda: pool.health()["endpoints"][server.endpoint] is False)
        assert not pool.health()["healthy"]
        server.thaw()


def test_heartbeats_are_on_unless_turned_off(pool, server):
    """A socket asks its peer for a sign of life every second and waits two, if not told otherwise."""
    with pool.socket(SocketConfig(SocketType.REQ, server.endpoint)) as socket:
        assert (1000, 10_000) == (socket.heartbeat_ivl, socket.heartbeat_timeout)
    with pool.socket(SocketConfig(SocketType.REQ, server.endpoint, heartbeat=0)) as socket:
        assert 0 == socket.heartbeat_ivl


def test_a_server_that_is_away_is_looked_for_at_growing_intervals(pool, free_endpoint):
    """A connection is tried again after 10 ms, then twice as long each time, up to the second that is the limit."""
    with pool.socket(SocketConfig(SocketType.REQ, free_endpoint)) as socket:
        assert (10, 1000) == (socket.reconnect_ivl, socket.reconnect_ivl_max)
    growing = intervals(pool, SocketConfig(SocketType.REQ, free_endpoint, linger=0.01), 6)
    assert [10, 20, 40, 80] == list(dict.fromkeys(growing))[:4]  # libzmq may tell of an attempt twice
    bounded = SocketConfig(SocketType.REQ, free_endpoint, options={"RECONNECT_IVL": 5, "RECONNECT_IVL_MAX": 15})
    assert [5, 10, 15] == list(dict.fromkeys(intervals(pool, bounded, 6)))


def intervals(pool, config, count):
    """Return the milliseconds that a socket to nobody waits before each of its next attempts."""
    with pool.socket(config) as socket:
        socket.disconnect(config.endpoint)
        monitor = socket.get_monitor_socket(zmq.EVENT_CONNECT_RETRIED)
        monitor.rcvtimeo = 20_000
        socket.connect(config.endpoint)
        waits = [int.from_bytes(monitor.recv_multipart()[0][2:6], "little") for _ in range(count)]
        socket.disable_monitor()
        monitor.close(0)
    return waits


def test_a_server_that_comes_back_is_found_again(pool, server):
    """A connection comes back by itself, well within the default `send_timeout`, whenever its server does."""
    with pool.socket(SocketConfig(SocketType.REQ, server.endpoint, send_timeout=5)) as socket:
        for turn in range(3):
            body = b"%d" % turn
            socket.send(body)  # the same connection all the time, which is tried again without being asked
            assert body == socket.recv()
            server.kill()
            eventually(lambda: not socket.poll(0, zmq.POLLOUT))
            with pytest.raises(zmq.Again):
                socket.send(b"meanwhile", zmq.NOBLOCK)
            server.start()
    assert [b"0", b"1", b"2"] == server.executed()
