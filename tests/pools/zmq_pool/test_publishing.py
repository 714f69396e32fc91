"""Publishing and pushing: nothing lost at the beginning, nothing reordered, and back-pressure."""

import asyncio
import itertools
import threading

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NotSent, PoolTimeout
from app.pools.zmq_pool import Publisher, SocketConfig, SocketType, ZMQPool
from app.pools.zmq_pool.backend import raw_send
from tests.support.waiting import eventually, eventually_async


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


@pytest.fixture
def listen(pool):
    """Binds a SUB or PULL outside the pool; returns it and its endpoint."""
    sockets = []

    def listen(kind, rcvhwm=0):
        socket = pool.context.socket(kind)
        sockets.append(socket)
        socket.linger, socket.rcvtimeo, socket.rcvhwm = 0, 10_000, rcvhwm
        if kind == zmq.SUB:
            socket.subscribe(b"")
        socket.bind("tcp://127.0.0.1:*")
        return socket, socket.last_endpoint.decode()

    yield listen
    for socket in sockets:
        socket.close()


def test_a_burst_right_after_the_first_connect_is_complete(pool, listen):
    """Messages published before the subscription is there are kept, and arrive in order."""
    sub, endpoint = listen(zmq.SUB)
    config = SocketConfig(SocketType.PUB, endpoint, subscriber_wait=10)
    for n in range(2000):
        pool.publish(config, b"topic", b"%d" % n)
    assert [[b"topic", b"%d" % n] for n in range(2000)] == [sub.recv_multipart() for _ in range(2000)]


def test_without_a_subscriber_publishing_goes_on(pool, free_endpoint):
    """When nobody subscribes in time, messages are dropped, as PUB does, and the queue empties."""
    config = SocketConfig(SocketType.PUB, free_endpoint, bind=True, subscriber_wait=0.05)
    for _ in range(100):
        pool.publish(config, b"unheard")
    with pool.socket(config):
        pass
    assert 0 == pool.get_stats()["pools"][config.label]["queued"]


def test_the_backlog_is_bounded_while_the_first_subscriber_is_waited_for(pool, free_endpoint):
    """Beyond `backlog` the oldest messages are dropped and counted, and the subscriber gets the latest, in order."""
    config = SocketConfig(
        SocketType.PUB, free_endpoint, bind=True, backlog=10, send_timeout=0, subscriber_wait=60, options={"SNDHWM": 0}
    )
    for n in range(500):
        pool.publish(config, b"%d" % n)
        assert pool.get_stats()["pools"][config.label]["queued"] <= 10
    assert 490 == pool.get_stats()["pools"][config.label]["overruns"]
    with pool.context.socket(zmq.SUB) as sub:
        sub.linger, sub.rcvtimeo = 0, 10_000
        sub.subscribe(b"")
        sub.connect(free_endpoint)
        assert [b"%d" % n for n in range(490, 500)] == [sub.recv() for _ in range(10)]


def test_a_lost_lease_gives_the_socket_back(pool, listen):
    """A lease of a PUSH that was dropped without its end keeps neither the next lessee nor what others push."""
    pull, endpoint = listen(zmq.PULL)
    config = SocketConfig(SocketType.PUSH, endpoint)
    pool.push(config, b"first")
    with pytest.warns(ResourceWarning, match="test_a_lost_lease_gives_the_socket_back"):
        pool.socket(config).__enter__()
    pool.push(config, b"second")
    with pool.socket(config, timeout=10) as socket:
        socket.send(b"third")
    assert {b"first", b"second", b"third"} == {pull.recv() for _ in range(3)}


async def test_publishing_beside_a_lease_does_not_wait_for_its_end(pool, free_endpoint):
    """A full queue is waited for `send_timeout`, also while a task of the same loop has leased the PUB."""
    config = SocketConfig(SocketType.PUB, free_endpoint, bind=True, backlog=5, send_timeout=0.05, subscriber_wait=0)
    async with pool.socket(config):
        for _ in range(10):
            pool.publish(config, b"x")
        figures = pool.get_stats()["pools"][config.label]
        assert (5, 5) == (figures["queued"], figures["overruns"])


def test_a_message_whose_peer_dies_between_its_frames_is_whole_or_lost(pool, listen, monkeypatch):
    """Of a message that the end of its peer interrupts no part arrives alone, and all of it if the pool kept it."""
    first, endpoint = listen(zmq.PULL)
    config = SocketConfig(SocketType.PUSH, endpoint)
    with pool.socket(config) as socket:
        socket.send(b"warm")
    assert b"warm" == first.recv()
    sent = itertools.count(1)

    def send(socket, frame, flags):
        if next(sent) == 2:
            failed = socket.get_monitor_socket(zmq.EVENT_CLOSED)  # an attempt to connect again
            first.close(0)
            assert failed.poll(10_000)
            socket.disable_monitor()
            failed.close(0)
        return raw_send(socket, frame, flags)

    with monkeypatch.context() as patched:
        patched.setattr("app.pools.zmq_pool.sender.raw_send", send)
        pool.push(config, b"a", b"b", b"c")
        # libzmq says that it takes nothing, or takes the rest and drops it: which one is a race of its threads.
        kept = [[b"a", b"b", b"c"]] * pool.get_stats()["pools"][config.label]["queued"]
    pool.push(config, b"x", b"y", b"z")
    second = pool.context.socket(zmq.PULL)
    second.linger, second.rcvtimeo = 0, 10_000

    def bound():
        try:
            second.bind(endpoint)
        except zmq.ZMQError:
            return False
        return True

    try:
        eventually(bound)
        for expected in (*kept, [b"x", b"y", b"z"]):
            assert expected == second.recv_multipart()
    finally:
        second.close()


def test_a_message_without_frames_is_refused(pool, listen):
    """It fails the call that gave it, and not the one of another thread that sends what is queued."""
    _, endpoint = listen(zmq.PULL)
    with pytest.raises(TypeError, match="at least one frame"):
        pool.push(SocketConfig(SocketType.PUSH, endpoint))


@pytest.mark.parametrize("kind", [SocketType.PUB, SocketType.PUSH])
def test_each_threads_messages_keep_their_order(pool, listen, kind):
    """Of what 8 threads send at once through one socket nothing is lost, and each one's order is kept."""
    sink, endpoint = listen(zmq.SUB if kind is SocketType.PUB else zmq.PULL)
    config = SocketConfig(kind, endpoint, subscriber_wait=10, options={"SNDHWM": 0})
    send = pool.publish if kind is SocketType.PUB else pool.push

    def run(name):
        for n in range(1000):
            send(config, b"%d" % name, b"%d" % n)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    seen = {}
    for _ in range(8000):
        name, n = sink.recv_multipart()
        assert seen.get(name, -1) + 1 == int(n)
        seen[name] = int(n)
    for thread in threads:
        thread.join()


def test_what_is_pushed_before_a_worker_comes_is_kept(pool, free_endpoint):
    """Messages without a peer wait in the queue until there is one."""
    config = SocketConfig(SocketType.PUSH, free_endpoint)
    for n in range(100):
        pool.push(config, b"%d" % n)
    with pool.socket(SocketConfig(SocketType.PULL, free_endpoint, bind=True, receive_timeout=10)) as pull:
        assert [b"%d" % n for n in range(100)] == [pull.recv() for _ in range(100)]


def test_a_full_queue_is_back_pressure(pool, free_endpoint):
    """A push that finds the queue full waits, and is refused as safe to repeat."""
    config = SocketConfig(SocketType.PUSH, free_endpoint, backlog=5, send_timeout=0.05, linger=0.01)
    for _ in range(5):
        pool.push(config, b"x")
    with pytest.raises(NotSent, match="sending it again is safe"):
        pool.push(config, b"x")
    with pytest.raises(NotSent), pool.socket(config) as socket:
        socket.send(b"y")
    pool.stop(timeout=0.1)


async def test_a_full_queue_does_not_hold_up_the_event_loop(pool, free_endpoint):
    """`push_async` waits for room while other tasks run; each task's messages keep their order, and none is lost."""
    config = SocketConfig(SocketType.PUSH, free_endpoint, backlog=5, send_timeout=30)

    async def push(name):
        for n in range(20):
            await pool.push_async(config, b"%d" % name, b"%d" % n)

    pushing = [asyncio.create_task(push(name)) for name in range(10)]
    await eventually_async(lambda: pool.get_stats()["pools"].get(config.label, {}).get("queued") == 5)
    async with pool.socket(SocketConfig(SocketType.PULL, free_endpoint, bind=True, receive_timeout=10)) as pull:
        seen = dict.fromkeys(range(10), -1)
        for _ in range(200):
            name, n = map(int, await pull.recv_multipart())
            assert seen[name] + 1 == n
            seen[name] = n
    await asyncio.gather(*pushing)


async def test_a_push_that_waits_can_be_cancelled_and_has_an_end(pool, free_endpoint):
    """A cancelled `push_async` leaves no message; one that finds no room within `send_timeout` is NotSent."""
    config = SocketConfig(SocketType.PUSH, free_endpoint, backlog=1, send_timeout=1, linger=0.01)
    await pool.push_async(config, b"queued")
    with pytest.raises(TimeoutError) as cancelled:
        async with asyncio.timeout(0.05):
            await pool.push_async(config, b"cancelled")
    assert not isinstance(cancelled.value, NotSent)
    with pytest.raises(NotSent, match="sending it again is safe"):
        await pool.push_async(config, b"refused")
    assert 1 == pool.get_stats()["pools"][config.label]["queued"]
    await pool.stop_async(0.1)


async def test_publish_async_goes_on_without_a_slow_subscriber(pool, free_endpoint):
    """Where PUB finds no room within `send_timeout`, `publish_async` returns, as `publish` does."""
    config = SocketConfig(SocketType.PUB, free_endpoint, bind=True, backlog=5, send_timeout=0.05, subscriber_wait=0)
    async with pool.socket(config):
        for _ in range(7):
            await pool.publish_async(config, b"x")
        figures = pool.get_stats()["pools"][config.label]
        assert (5, 2) == (figures["queued"], figures["overruns"])


def test_publishing_goes_on_while_the_pool_is_paused(pool, listen):
    """`pause` holds back leases; a push, which needs none, is sent."""
    pull, endpoint = listen(zmq.PULL)
    config = SocketConfig(SocketType.PUSH, endpoint)
    pool.pause()
    pool.push(config, b"meanwhile")
    assert b"meanwhile" == pull.recv()
    with pytest.raises(PoolTimeout), pool.socket(config, timeout=0.01):
        pass
    pool.resume()


def test_a_lease_of_the_publishing_socket_excludes_the_others(pool, listen):
    """While the one PUSH is leased, others' messages queue; they follow after the lease."""
    pull, endpoint = listen(zmq.PULL)
    config = SocketConfig(SocketType.PUSH, endpoint)
    pool.push(config, b"before")
    with pool.socket(config) as socket:
        pool.push(config, b"after")
        socket.send(b"during")
    assert [b"before", b"during", b"after"] == [pull.recv() for _ in range(3)]


async def test_a_publisher_sends_json_behind_its_topic(pool, listen):
    """A Publisher's send makes a topic frame and a JSON frame, from a coroutine as well."""
    sub, endpoint = listen(zmq.SUB)
    publisher = Publisher(pool, SocketConfig(SocketType.PUB, endpoint, subscriber_wait=10))
    publisher.send("news", {"n": 1})
    publisher.send({"n": 2}, topic="news")
    await publisher.send_async("news", {"n": 3})
    await publisher.publish_async(b"raw")
    publisher.send({"n": 4})
    numbered = [[b"news", b'{"n":%d}' % n] for n in (1, 2, 3)]
    assert [*numbered, [b"raw"], [b'{"n":4}']] == [sub.recv_multipart() for _ in range(5)]


def test_stopping_delivers_what_is_queued(pool, listen):
    """Messages accepted before the stop arrive after it."""
    pull, endpoint = listen(zmq.PULL)
    other = ZMQPool(ZMQPoolSettings())
    for n in range(3000):
        other.push(SocketConfig(SocketType.PUSH, endpoint), b"%d" % n)
    stopping = threading.Thread(target=other.stop)
    stopping.start()
    assert [b"%d" % n for n in range(3000)] == [pull.recv() for _ in range(3000)]
    stopping.join(10)


def test_a_subscriber_that_does_not_read_holds_nobody_up_for_long(pool, listen):
    """When a subscriber's queue is full, publishing waits `send_timeout` and then goes on without it."""
    sub, endpoint = listen(zmq.SUB, rcvhwm=10)
    config = SocketConfig(
        SocketType.PUB, endpoint, backlog=10, send_timeout=0.05, subscriber_wait=10, linger=0.01,
        options={"SNDHWM": 1, "SNDBUF": 4096},
    )  # fmt: skip
    label = config.label
    frame = b"x" * 100_000
    pool.publish(config, frame)
    assert sub.poll(10_000)  # it has subscribed, and reads no more from now on

    def overrun():
        pool.publish(config, frame)
        return pool.get_stats()["pools"][label]["overruns"]

    eventually(overrun, seconds=60)


def test_a_worker_that_does_not_read_is_back_pressure(pool, listen):
    """With libzmq's queues and the backlog full, a push to a connected worker is refused; what was accepted arrives."""
    pull, endpoint = listen(zmq.PULL, rcvhwm=10)
    config = SocketConfig(
        SocketType.PUSH, endpoint, backlog=10, send_timeout=0.2, options={"SNDHWM": 10, "SNDBUF": 4096}
    )
    padding = b"x" * 20_000
    serial = itertools.count()

    def push_until_refused():
        while True:
            pool.push(config, b"%d" % next(serial), padding)

    with pytest.raises(NotSent, match="10 messages are queued"):
        push_until_refused()
    accepted = next(serial) - 1
    eventually(lambda: pool.health()["endpoints"][endpoint])
    assert 1 == pool.get_stats()["pools"][config.label]["refused"]
    assert [b"%d" % n for n in range(accepted)] == [pull.recv_multipart()[0] for _ in range(accepted)]
    pool.push(config, b"again", padding)
    assert b"again" == pull.recv_multipart()[0]


@pytest.mark.parametrize("kind", [SocketType.PUB, SocketType.PUSH])
def test_what_libzmq_still_has_to_send_at_the_stop_arrives(pool, listen, kind):
    """A stop closes a PUB or PUSH with time to send what libzmq has accepted, for a peer that reads only afterwards."""
    sink, endpoint = listen(zmq.SUB if kind is SocketType.PUB else zmq.PULL, rcvhwm=1)
    config = SocketConfig(kind, endpoint, subscriber_wait=10, linger=30, options={"SNDHWM": 0, "SNDBUF": 4096})
    other = ZMQPool(ZMQPoolSettings())
    send = other.publish if kind is SocketType.PUB else other.push
    padding = b"x" * 30_000
    send(config, b"0", padding)
    assert sink.poll(10_000)  # connected, and subscribed
    for n in range(1, 100):
        send(config, b"%d" % n, padding)
    label = config.label
    eventually(lambda: other.get_stats()["pools"][label]["queued"] == 0)
    other.stop(10)
    assert [b"%d" % n for n in range(100)] == [sink.recv_multipart()[0] for _ in range(100)]


def test_frames_must_be_bytes(pool, free_endpoint):
    """What is no bytes is refused in the call that gave it, not in another thread's."""
    with pytest.raises(TypeError, match="not str"):
        pool.push(SocketConfig(SocketType.PUSH, free_endpoint), "text")
    pool.stop(timeout=0.1)
