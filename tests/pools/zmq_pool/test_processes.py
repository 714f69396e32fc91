"""Servers that die under a request, and children that fork and spawn."""

import asyncio
import math
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import zmq

from app.pools.errors import ConnectionLost, NoReply, NotSent
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool, get_zmq_pool
from app.pools.zmq_pool.attendant import Attendant
from tests.support.children import in_child
from tests.support.echo import replier
from tests.support.echo_process import echo_process
from tests.support.waiting import eventually


def _ask_and_receive(receive):
    def ask(pool, config):
        with pool.socket(config) as socket:
            assert 600_000 == socket.rcvtimeo
            socket.send(b"tell")
            receive(socket)

    return ask


def _ask_a_dealer(receive):
    def ask(pool, config):
        with pool.socket(replace(config, socket_type=SocketType.DEALER)) as socket:
            assert 600_000 == socket.rcvtimeo
            socket.send_multipart([b"", b"tell"])
            receive(socket)

    return ask


def _ask_many(pool, config):
    pool.request_many(config, [b"answered", b"tell", b"answered"], timeout=600)


def _ask_by_lease_in_asyncio(pool, config):
    asyncio.run(pool.request_async(replace(config, multiplexed=False), b"tell"))


def _ask_multiplexed(pool, config):
    asyncio.run(pool.request_async(config, b"tell"))


def _ask_a_dealer_in_asyncio(pool, config):
    async def ask():
        async with pool.socket(replace(config, socket_type=SocketType.DEALER)) as socket:
            await socket.send_multipart([b"", b"tell"])
            receiving = [asyncio.create_task(socket.recv_multipart()) for _ in range(3)]
            outcomes = await asyncio.gather(*receiving, return_exceptions=True)
            assert 3 == len({id(each) for each in outcomes})
            raise outcomes[-1]

    asyncio.run(ask())


WAYS_TO_ASK = {
    "recv": _ask_and_receive(lambda socket: socket.recv()),
    "recv_string": _ask_and_receive(lambda socket: socket.recv_string()),
    "recv_multipart": _ask_and_receive(lambda socket: socket.recv_multipart()),
    "recv_into": _ask_and_receive(lambda socket: socket.recv_into(bytearray(8))),
    "a DEALER's recv": _ask_a_dealer(lambda socket: socket.recv()),
    "a DEALER's recv_multipart": _ask_a_dealer(lambda socket: socket.recv_multipart()),
    "a DEALER's recv_into": _ask_a_dealer(lambda socket: socket.recv_into(bytearray(8))),
    "request_many": _ask_many,
    "request_async, not multiplexed": _ask_by_lease_in_asyncio,
    "request_async": _ask_multiplexed,
    "a DEALER in asyncio": _ask_a_dealer_in_asyncio,
}


@pytest.mark.parametrize("ask", WAYS_TO_ASK.values(), ids=WAYS_TO_ASK)
def test_a_server_that_dies_fails_the_request_that_waits_for_it(ask):
    """A request whose server is killed fails at once, long before its time limit, as maybe executed."""
    with ZMQPool() as pool, echo_process("ROUTER") as server, ThreadPoolExecutor(1) as threads:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=600)
        eventually(lambda: pool.request(config, b"warm") and pool.health()["endpoints"][server.endpoint])
        asking = threads.submit(ask, pool, config)
        server.wait_until_told()
        server.kill()
        with pytest.raises(ConnectionLost) as lost:
            asking.result(20)
        assert lost.value.maybe_executed
        if ask is not _ask_multiplexed:
            assert isinstance(lost.value, NoReply)
            assert isinstance(lost.value, zmq.Again)
            assert "went down before the reply came" in str(lost.value)
        moved = pickle.loads(pickle.dumps(lost.value))
        assert isinstance(moved, ConnectionLost)
        assert str(lost.value) == str(moved)
        server.start()
        assert b"again" == pool.request(config, b"again")


def test_a_slow_reply_is_waited_for():
    """A reply that takes longer than the looks at the endpoint comes through, and a limit that passes is NoReply."""
    slow = threading.Event()

    def answer(frames):
        slow.wait(1)
        return frames

    with ZMQPool() as pool, replier(answer) as endpoint:
        for limit in (10, math.inf):
            config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=limit)
            assert b"slow" == pool.request(config, b"slow")
            assert [b"slow"] == pool.request_many(config, [b"slow"])
        with pytest.raises(NoReply):
            pool.request(config, b"too slow", timeout=0.5)
        with pytest.raises(NoReply):
            pool.request_many(config, [b"too slow"], timeout=0.5)
        slow.set()


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
def test_a_reply_received_into_a_buffer_has_the_time_limit_of_any_other(kind):
    """`recv_into` waits for a reply as long as the other receives, raises NoReply then, and may be called again."""
    go_on = threading.Event()

    def answer(frames):
        go_on.wait(10)
        return frames

    with ZMQPool() as pool, replier(answer) as endpoint:
        with pool.socket(SocketConfig(kind, endpoint, receive_timeout=0.5)) as socket:
            socket.send_multipart([b"", b"body"] if kind is SocketType.DEALER else [b"body"])
            buffer = bytearray(8)
            began = time.monotonic()
            for attempt in (1, 2):
                with pytest.raises(NoReply):
                    socket.recv_into(buffer)
                assert time.monotonic() - began >= 0.5 * attempt
            go_on.set()
            assert socket.poll(10_000)
            while not (size := socket.recv_into(buffer)):  # a DEALER's empty frame
                assert kind is SocketType.DEALER
            assert b"body" == buffer[:size]
        assert 1 == pool.get_stats()["metrics"]["total_connections"]


def test_a_dealer_that_has_asked_nothing_waits_on():
    """A DEALER without a request on its way, and one with a second peer, do not fail when the endpoint goes down."""
    with ZMQPool() as pool, echo_process("ROUTER") as server, replier(lambda frames: None) as other:
        config = SocketConfig(SocketType.DEALER, server.endpoint, receive_timeout=1.5)
        with pool.socket(config) as idle, pool.socket(config) as connected:
            eventually(lambda: pool.health()["endpoints"][server.endpoint])
            connected.connect(other)
            assert 1500 == connected.rcvtimeo
            connected.send_multipart([b"", b"silence"])
            server.kill()
            eventually(lambda: pool.health()["endpoints"][server.endpoint] is False)
            for socket in (idle, connected):
                with pytest.raises(NoReply, match="within its time limit"):
                    socket.recv()


def test_an_idle_socket_survives_a_restart():
    """A pooled REQ that was idle while its server restarted serves the next request."""
    with ZMQPool() as pool, echo_process() as server:
        config = SocketConfig(SocketType.REQ, server.endpoint)
        pool.request(config, b"before")
        server.kill()
        server.start()
        eventually(lambda: pool.health()["endpoints"][server.endpoint])
        assert b"after" == pool.request(config, b"after")


def _ask_in_child(pool, config, body, answers):
    answers.put(pool.request(config, body))
    answers.put(asyncio.run(pool.request_async(config, body)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_sockets_of_its_own():
    """A child forked while leases are out asks through a pool of its own, and the parent's sockets still work."""
    with ZMQPool() as pool, echo_process() as server:
        config = SocketConfig(SocketType.REQ, server.endpoint)
        publish = SocketConfig(SocketType.PUSH, "tcp://127.0.0.1:9", send_timeout=0.1, linger=0.01)
        pool.push(publish, b"waits in the parent")
        forking = multiprocessing.get_context("fork")
        answers = forking.SimpleQueue()
        with pool.socket(config) as socket:
            socket.send(b"parent")
            children = [
                forking.Process(target=_ask_in_child, args=(pool, config, b"%d" % n, answers)) for n in range(3)
            ]
            for child in children:
                child.start()
            for child in children:
                child.join(20)
                assert 0 == child.exitcode
            assert b"parent" == socket.recv()
        assert [b"0", b"0", b"1", b"1", b"2", b"2"] == sorted(answers.get() for _ in range(6))
        assert b"after" == pool.request(config, b"after")
        pool.stop(timeout=0.1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_during_a_stop_starts_its_pool(monkeypatch):
    """A child forked while another thread of its parent stops the pool can start it, and asks through it."""
    dismissing, forked = threading.Event(), threading.Event()
    dismiss = Attendant.dismiss

    def dismiss_late(*args):
        dismissing.set()
        assert forked.wait(30)
        dismiss(*args)

    def ask():
        monkeypatch.undo()
        pool.start()
        for body in (b"one", b"two"):
            assert body == pool.request(config, body)

    with echo_process() as server, ThreadPoolExecutor(1) as thread:
        pool = ZMQPool()
        config = SocketConfig(SocketType.REQ, server.endpoint)
        assert b"parent" == pool.request(config, b"parent")
        monkeypatch.setattr(Attendant, "dismiss", dismiss_late)
        stopping = thread.submit(pool.stop)
        try:
            assert dismissing.wait(10)
            in_child(ask)
        finally:
            forked.set()
        stopping.result(20)


def _ask_in_spawned(config, answers):
    answers.put(get_zmq_pool().request(config, b"spawned"))
    answers.put(asyncio.run(get_zmq_pool().request_async(config, b"spawned")))


def test_a_spawned_child_asks_by_the_configuration_that_it_was_given():
    """Children that are spawned while leases are out take the configuration along, and ask through their own pool."""
    with ZMQPool() as pool, echo_process() as server:
        config = SocketConfig("REQ", server.endpoint, options={zmq.RCVHWM: 10}, receive_timeout=20)
        spawning = multiprocessing.get_context("spawn")
        answers = spawning.SimpleQueue()
        with pool.socket(config) as socket:
            socket.send(b"parent")
            children = [spawning.Process(target=_ask_in_spawned, args=(config, answers)) for _ in range(2)]
            for child in children:
                child.start()
            for child in children:
                child.join(30)
                assert 0 == child.exitcode
            assert b"parent" == socket.recv()
        assert [b"spawned"] * 4 == [answers.get() for _ in range(4)]


_SPAWNED = """
import sys
from app.pools.zmq_pool import SocketConfig, SocketType, get_zmq_pool
print(get_zmq_pool().request(SocketConfig(SocketType.REQ, sys.argv[1]), b"spawned").decode())
"""

_LAST_WORDS = """
import sys
from app.pools.zmq_pool import SocketConfig, SocketType, get_zmq_pool
for n in range(1000):
    get_zmq_pool().push(SocketConfig(SocketType.PUSH, sys.argv[1]), b"%d" % n)
"""


def test_a_spawned_process_ends_cleanly_without_stopping_its_pool():
    """A script that never stops its pool prints nothing but its answer and exits with 0, warnings being errors."""
    with echo_process() as server:
        run = [sys.executable, "-W", "error", "-c", _SPAWNED, server.endpoint]
        result = subprocess.run(run, capture_output=True, text=True, timeout=30, check=False)
        assert (0, "spawned\n", "") == (result.returncode, result.stdout, result.stderr)


def test_what_was_pushed_last_leaves_the_process():
    """A script that pushes and ends at once, without a stop, loses nothing."""
    with ZMQPool() as pool:
        config = SocketConfig(SocketType.PULL, "tcp://127.0.0.1:*", bind=True, receive_timeout=10)
        with pool.socket(config) as pull:
            run = [sys.executable, "-c", _LAST_WORDS, pull.last_endpoint.decode()]
            subprocess.run(run, timeout=30, check=True)
            assert [b"%d" % n for n in range(1000)] == [pull.recv() for _ in range(1000)]


def _push_last_words(endpoint):
    for n in range(1000):
        get_zmq_pool().push(SocketConfig(SocketType.PUSH, endpoint), b"%d" % n)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(("method", "times"), [("fork", 5), ("forkserver", 1)])
def test_what_a_child_of_multiprocessing_pushed_last_leaves_it(method, times):
    """A child that pushes and ends at once loses nothing, however it began."""
    with ZMQPool() as pool:
        get_zmq_pool().start()  # so that a forked child has a parent whose pool is in use
        config = SocketConfig(SocketType.PULL, "tcp://127.0.0.1:*", bind=True, receive_timeout=20)
        with pool.socket(config) as pull:
            endpoint = pull.last_endpoint.decode()
            for _ in range(times):
                child = multiprocessing.get_context(method).Process(target=_push_last_words, args=(endpoint,))
                child.start()
                assert [b"%d" % n for n in range(1000)] == [pull.recv() for _ in range(1000)]
                child.join(20)
                assert 0 == child.exitcode
    get_zmq_pool().stop()


def test_many_threads_get_one_default_pool():
    """`get_zmq_pool` called by many threads at once makes one pool; after a stop, the next call makes a new one."""
    for _ in range(20):
        with ThreadPoolExecutor(16) as threads:
            pools = list(threads.map(lambda _: get_zmq_pool(), range(64)))
        assert 1 == len(set(map(id, pools)))
        pools[0].stop()
    assert get_zmq_pool() is not pools[0]
    get_zmq_pool().stop()


def test_stopping_with_a_dead_peer_does_not_hang():
    """A pool with sockets to a server that is gone, and messages nobody took, stops within its bounds."""
    pool = ZMQPool()
    with echo_process() as server:
        config = SocketConfig(SocketType.REQ, server.endpoint)
        pool.request(config, b"x")
    pool.push(SocketConfig(SocketType.PUSH, server.endpoint, linger=0.1), b"nobody takes this")
    began = time.monotonic()
    pool.stop(timeout=0.5)
    assert time.monotonic() - began < 5


def test_many_requests_are_pipelined_and_stay_in_order():
    """`request_many` returns every reply in the order of the requests, beyond the window as well."""
    with ZMQPool() as pool, echo_process() as server:
        config = SocketConfig(SocketType.REQ, server.endpoint)
        bodies = [b"%d" % n for n in range(5000)]
        assert bodies == pool.request_many(config, bodies)
        assert bodies[:10] == pool.request_many(config, bodies[:10], timeout=10)
        assert [] == pool.request_many(config, [])
        server.freeze()
        with pytest.raises(NoReply):
            pool.request_many(config, bodies, timeout=0.2)
        server.thaw()
        assert bodies == pool.request_many(config, bodies)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
def test_a_forked_child_cannot_use_what_its_parent_has_leased(kind):
    """Within the block in which it was forked a child is refused every use, and its parent gets its reply."""
    with ZMQPool() as pool, echo_process("ROUTER") as server:
        config = SocketConfig(kind, server.endpoint, receive_timeout=20)
        lease = pool.socket(config)
        socket = lease.__enter__()
        socket.send(b"the parent's")

        def child() -> None:
            for use in (lambda: socket.recv(), lambda: socket.send(b"x"), lambda: socket.poll(0)):
                with pytest.raises(NotSent, match="belongs to the process that was forked"):
                    use()
            lease.__exit__(None, None, None)
            assert b"the child's" == pool.request(SocketConfig("REQ", server.endpoint), b"the child's")
            pool.stop(10)

        in_child(child)
        assert b"the parent's" == socket.recv()
        lease.__exit__(None, None, None)
