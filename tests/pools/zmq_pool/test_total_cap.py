"""The cap over all configurations: what is leased, what PUB and PUSH keep, and what requests share all count."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import PoolClosed, PoolTimeout
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.children import in_child
from tests.support.echo import replier
from tests.support.waiting import eventually, eventually_async

NAMED = r"all \d connections that the pool may have are taken.*raise ZMQ_POOL_MAX_TOTAL_CONNECTIONS"


def capped(total, **settings):
    return ZMQPool(ZMQPoolSettings(max_total_connections=total, **settings))


def requests(endpoint, number=0):
    return SocketConfig(SocketType.REQ, endpoint, send_timeout=10, receive_timeout=10 + number)


@pytest.fixture
def echo():
    with replier() as endpoint:
        yield endpoint


@pytest.fixture
def sink():
    context = zmq.Context()
    socket = context.socket(zmq.PULL)
    socket.linger, socket.rcvtimeo = 0, 10_000
    socket.bind("tcp://127.0.0.1:*")
    yield socket
    socket.close(0)
    context.term()


def pushes(sink, number=0):
    return SocketConfig(SocketType.PUSH, sink.last_endpoint.decode(), send_timeout=10 + number)


def open_sockets(pool):
    return pool.get_stats()["metrics"]["total_connections"]


def test_what_pub_and_push_keep_counts(sink, echo):
    """Beside two kept sockets and a cap of three there is one lease; a second one is told which cap it is."""
    with capped(3, checkout_timeout=0.05) as pool:
        pool.push(pushes(sink), b"1")
        pool.push(pushes(sink, 1), b"2")
        assert {b"1", b"2"} == {sink.recv(), sink.recv()}
        with pool.socket(requests(echo)), pytest.raises(PoolTimeout, match=NAMED):
            pool.socket(requests(echo, 1)).__enter__()
        assert 3 == open_sockets(pool)


def test_a_publisher_gets_the_place_of_an_idle_socket(sink, echo):
    """An idle REQ makes room for the socket of a PUSH, at once."""
    with capped(1, checkout_timeout=60) as pool:
        for number in range(3):
            body = b"%d" % number
            assert body == pool.request(requests(echo), body)
            pool.push(pushes(sink), body)
            assert body == sink.recv()
            assert 1 == open_sockets(pool)
            pool.stop()
            pool.start()


def test_what_is_pushed_while_all_places_are_taken_waits(sink, echo):
    """It is queued, and sent as soon as a lease ends; nothing is sent twice or out of order."""
    with capped(1, checkout_timeout=60) as pool:
        with pool.socket(requests(echo)):
            for number in range(10):
                pool.push(pushes(sink), b"%d" % number)
            assert not sink.poll(50)
        assert [b"%d" % number for number in range(10)] == [sink.recv() for _ in range(10)]


def test_who_pushes_in_vain_is_told_which_cap_it_is(sink, echo, caplog):
    """After the time for a checkout a push raises, without its message; what was queued is sent once there is room."""
    with capped(1, checkout_timeout=0.05) as pool:
        queued = []
        with pool.socket(requests(echo)):

            def push():
                for number in range(10_000):  # the first may come while another thread tries
                    pool.push(pushes(sink), b"%d" % number)
                    queued.append(b"%d" % number)
                    eventually(lambda: "messages wait for it" in caplog.text)

            with pytest.raises(PoolTimeout, match=f"{NAMED}|held longest.*in test_who_pushes") as refused:
                push()
            assert "in test_who_pushes_in_vain" in str(refused.value)
        assert queued == [sink.recv() for _ in queued]
        assert not sink.poll(100)


def test_a_push_gets_its_place_beside_threads_that_never_pause(sink, echo):
    """Threads that lease all places again and again give one up for a socket that is to be kept."""
    with capped(2, checkout_timeout=20) as pool, ThreadPoolExecutor(4) as threads:
        ended = threading.Event()

        def ask(number):
            while not ended.is_set():
                assert b"x" == pool.request(requests(echo), b"x")

        asking = [threads.submit(ask, number) for number in range(4)]
        try:
            eventually(lambda: open_sockets(pool) == 2)
            pool.push(pushes(sink), b"through")
            assert b"through" == sink.recv()
            assert open_sockets(pool) <= 2
        finally:
            ended.set()
        for each in asking:
            each.result(30)


async def test_multiplexed_requests_take_one_place(echo, sink):
    """However many tasks ask at once, they take one, also while they have to wait for it."""
    async with capped(2, checkout_timeout=20) as pool:
        with pool.socket(requests(echo, 1)):
            lease = pool.socket(requests(echo, 2))
            lease.__enter__()
            asking = [asyncio.create_task(pool.request_async(requests(echo), b"%d" % n)) for n in range(100)]
            await eventually_async(lambda: sum(each.waiting for each in pool._multiplexers._beginnings.values()) == 100)
            lease.__exit__(None, None, None)
            assert [b"%d" % n for n in range(100)] == await asyncio.gather(*asking)
            assert 2 == open_sockets(pool)
            with pytest.raises(PoolTimeout, match=NAMED):
                await pool.request_async(requests(echo, 3), b"x", timeout=0.0)


async def test_tasks_that_give_up_leave_no_wish(echo):
    """Those that waited for a place, and timed out or were cancelled, keep nobody from lending sockets on."""
    async with capped(1) as pool:
        with pool.socket(requests(echo)):
            waiting = asyncio.create_task(pool.request_async(requests(echo, 1), b"x"))
            await eventually_async(lambda: pool._budget.hungry)
            waiting.cancel()
            for error in await asyncio.gather(
                waiting, pool.request_async(requests(echo, 2), b"x", timeout=0.02), return_exceptions=True
            ):
                assert isinstance(error, asyncio.CancelledError | PoolTimeout)
            assert {} == pool._budget.hungry
        for _ in range(3):
            assert b"x" == pool.request(requests(echo), b"x")
        assert 1 == pool.get_stats()["metrics"]["pool_misses"]


async def test_an_idle_multiplexer_makes_room(echo, sink):
    """A lease, a push and another loop get the place of one that nobody waits for; then it gets one of theirs back."""
    async with capped(1, checkout_timeout=20) as pool:
        for number in range(3):
            assert b"shared" == await pool.request_async(requests(echo), b"shared")
            assert b"leased" == await asyncio.to_thread(pool.request, requests(echo), b"leased")
            assert b"of another loop" == await asyncio.to_thread(
                asyncio.run, pool.request_async(requests(echo, 1 + number), b"of another loop")
            )
            assert 1 == open_sockets(pool)
        await pool.push_async(pushes(sink), b"pushed")
        assert b"pushed" == await asyncio.to_thread(sink.recv)


async def test_a_busy_multiplexer_is_left_alone(echo):
    """While a request of it is on its way nobody gets its place, and the request its reply."""
    answering = threading.Event()

    def hold(frames):
        answering.wait(10)
        return frames

    with replier(hold) as slow:
        async with capped(1, checkout_timeout=0.1) as pool:
            asking = asyncio.create_task(pool.request_async(requests(slow), b"slow"))
            await eventually_async(lambda: open_sockets(pool))
            with pytest.raises(PoolTimeout, match=NAMED):
                await asyncio.to_thread(pool.request, requests(echo), b"x")
            answering.set()
            assert b"slow" == await asking
            assert b"x" == await asyncio.to_thread(pool.request, requests(echo), b"x")


async def test_one_that_waits_for_a_place_at_the_stop_is_told(echo):
    """It gets PoolClosed, not a timeout that would send its user after the wrong cause."""
    pool = capped(1, checkout_timeout=20)
    with pool.socket(requests(echo)) as socket:
        waiting = asyncio.create_task(pool.request_async(requests(echo, 1), b"x", timeout=20))
        await eventually_async(lambda: pool._budget.hungry)
        stopping = asyncio.create_task(pool.stop_async(20))
        with pytest.raises(PoolClosed):
            await waiting
        assert not socket.closed
    await stopping
    assert {} == pool._budget.hungry


def test_a_forked_child_has_all_places(echo, sink):
    """What its parent keeps and leases takes none of them."""
    with capped(1) as pool:
        pool.push(pushes(sink), b"parent's")
        assert b"parent's" == sink.recv()
        in_child(lambda: pool.request(requests(echo), b"child's") == b"child's" or 1 / 0)


def test_the_cap_holds_under_a_churn_of_all_kinds(echo, sink):
    """Leases, requests of threads and tasks, and pushes never open more sockets than the cap, and all get through."""
    with capped(4, checkout_timeout=30) as pool, ThreadPoolExecutor(6) as threads:
        deadline = time.monotonic() + 1.0

        async def ask(number):
            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(pool.request_async(requests(echo, number), b"x"))

        def use(number):
            rounds = 0
            while time.monotonic() < deadline or rounds < 3:
                rounds += 1
                assert b"x" == pool.request(requests(echo, number % 3), b"x")
                pool.push(pushes(sink), b"x")
                asyncio.run(ask(number % 2))
                assert open_sockets(pool) <= 4
            return rounds

        rounds = sum(each.result(60) for each in [threads.submit(use, number) for number in range(6)])
        for _ in range(rounds):
            assert b"x" == sink.recv()
