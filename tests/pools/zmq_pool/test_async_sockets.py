"""Leased sockets in asyncio: every method awaited, nobody kept waiting by another task, nothing left behind."""

import asyncio
import gc
import inspect
import threading
import warnings
import weakref

import pytest
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import LeaseEnded
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from app.pools.zmq_pool.aio import AsyncSocket
from tests.support.echo import replier
from tests.support.waiting import eventually, eventually_async

BOUND = SocketConfig(SocketType.PULL, "tcp://127.0.0.1:*", bind=True)


@pytest.fixture
async def pool():
    async with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


def pusher(pull):
    return SocketConfig(SocketType.PUSH, pull.last_endpoint.decode())


def test_what_zmq_asyncio_awaits_is_awaited():
    """Every method that sends, receives or polls in `zmq.asyncio` is a coroutine function of a leased socket."""
    names = [name for name in dir(zmq.asyncio.Socket) if name.startswith(("send", "recv", "poll"))]
    assert {"poll", "recv_into", "recv_pyobj", "send_pyobj", "send_unicode"} <= set(names)
    assert [] == [name for name in names if not inspect.iscoroutinefunction(getattr(AsyncSocket, name, None))]


@pytest.mark.parametrize("kind", ["string", "unicode", "json", "pyobj"])
async def test_what_is_sent_in_a_form_is_received_in_it(pool, kind):
    """What each kind of send encodes, the receive of that kind decodes."""
    with replier() as endpoint:
        async with pool.socket(SocketConfig(SocketType.REQ, endpoint)) as socket:
            await getattr(socket, f"send_{kind}")("text")
            assert "text" == await getattr(socket, f"recv_{kind}")()


async def test_frames_are_serialized_and_received_into_a_buffer(pool):
    """Several frames go through a caller's own functions, and one frame into a caller's own buffer."""
    with replier() as endpoint:
        async with pool.socket(SocketConfig(SocketType.REQ, endpoint)) as socket:
            await socket.send_serialized("ab", lambda text: [each.encode() for each in text])
            assert "ab" == await socket.recv_serialized(lambda frames: b"".join(frames).decode())
            await socket.send(b"frame")
            buffer = bytearray(8)
            assert 5 == await socket.recv_into(buffer)
            assert b"frame\0\0\0" == buffer
        assert 1 == pool.get_stats()["metrics"]["total_connections"]


async def test_a_receive_that_is_not_to_wait_does_not(pool):
    """With NOBLOCK a receive is zmq.Again at once, also while other tasks poll or receive on the socket."""
    async with pool.socket(BOUND) as pull:
        waiting = [asyncio.create_task(pull.poll(60_000)), asyncio.create_task(pull.recv())]
        await asyncio.sleep(0)
        for receive in (pull.recv, pull.recv_multipart, pull.recv_string):
            with pytest.raises(zmq.Again):
                await asyncio.wait_for(receive(zmq.NOBLOCK), 10)
        pool.push(pusher(pull), b"message")
        assert [zmq.POLLIN, b"message"] == await asyncio.wait_for(asyncio.gather(*waiting), 10)


async def test_several_tasks_poll_one_socket(pool, free_endpoint):
    """Every task that polls is woken by what it asked for, whichever of the directions is ready."""
    async with pool.socket(SocketConfig(SocketType.DEALER, free_endpoint)) as dealer:
        assert 0 == await dealer.poll(0, zmq.POLLIN | zmq.POLLOUT)
        assert 0 == await dealer.poll(1)
        both = [asyncio.create_task(dealer.poll(flags=zmq.POLLIN | zmq.POLLOUT)) for _ in range(3)]
        reading = asyncio.create_task(dealer.poll())
        await asyncio.sleep(0)
        with replier(endpoint=free_endpoint):
            assert [zmq.POLLOUT] * 3 == await asyncio.wait_for(asyncio.gather(*both), 10)
            assert not reading.done()
            await dealer.send_multipart([b"", b"x"])
            assert zmq.POLLIN == await asyncio.wait_for(reading, 10)
            assert [b"", b"x"] == await dealer.recv_multipart(zmq.NOBLOCK)


async def test_a_look_at_the_events_takes_nobodys_wake_up(pool):
    """A task that reads the socket's events, or its options, does not leave another waiting for a message that came."""
    async with pool.socket(BOUND) as pull:
        for n in range(10):
            waiting = asyncio.create_task(pull.recv())
            await asyncio.sleep(0.001)
            pool.push(pusher(pull), b"%d" % n)
            eventually(lambda: pull.get(zmq.EVENTS) & zmq.POLLIN)
            assert b"%d" % n == await asyncio.wait_for(waiting, 10)


async def test_a_monitor_is_awaited_as_well(pool):
    """The monitor of a leased socket gives its events to those who await them."""
    with replier() as endpoint, replier() as other:
        async with pool.socket(SocketConfig(SocketType.REQ, endpoint)) as socket:
            monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            socket.connect(other)
            event = await asyncio.wait_for(recv_monitor_message(monitor), 10)
            assert zmq.EVENT_HANDSHAKE_SUCCEEDED == event["event"]
            socket.disable_monitor()
            monitor.close(0)


async def test_a_cancellation_inside_a_lease_costs_that_socket_only(pool):
    """Of three leases out one is cancelled as it waits: the others get their own replies, and so do the next ones."""
    go_on = threading.Event()

    def answer_late(frames):
        go_on.wait(10)
        return frames

    with replier(answer_late) as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, max_connections=3)

        async def ask(body, sent=None):
            async with pool.socket(config) as socket:
                await socket.send(body)
                if sent is not None:
                    await sent.wait()
                return await socket.recv()

        for _ in range(5):
            go_on.clear()
            all_sent = asyncio.Barrier(4)
            asking = [asyncio.create_task(ask(b"%d" % n, all_sent)) for n in range(3)]
            await asyncio.wait_for(all_sent.wait(), 10)
            before = pool.get_stats()["pools"][config.label]["discarded"]
            asking[1].cancel()
            go_on.set()
            first, cancelled, third = await asyncio.gather(*asking, return_exceptions=True)
            assert (b"0", b"2") == (first, third)
            assert isinstance(cancelled, asyncio.CancelledError)
            assert 1 == pool.get_stats()["pools"][config.label]["discarded"] - before
            assert 2 == pool.get_stats()["metrics"]["total_connections"]
            assert [b"%d" % n for n in range(30)] == await asyncio.gather(*(ask(b"%d" % n) for n in range(30)))


async def test_a_lost_lease_is_collected_though_it_was_watched(pool):
    """The socket of a lease that a task waited on, and that was lost then, closes, and its descriptor is free again."""
    with replier(lambda frames: None if frames[0] == b"silence" else frames) as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, max_connections=1)
        for _ in range(10):
            lease = pool.socket(config)
            socket = await lease.__aenter__()
            await socket.send(b"answered")
            assert b"answered" == await socket.recv()
            await socket.send(b"silence")
            assert 0 == await socket.poll(1)
            collected = weakref.ref(socket._socket)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                del lease, socket
                gc.collect()
            await eventually_async(lambda collected=collected: collected() is None)
            async with pool.socket(config) as socket:
                await socket.send(b"next")
                assert b"next" == await asyncio.wait_for(socket.recv(), 10)
            del socket


async def test_a_task_that_only_the_loop_knows_waits_on(pool):
    """A task to which nothing refers but the socket it waits on is not collected while it waits."""
    received = []

    async def receive(pull):
        received.append(await pull.recv())

    async with pool.socket(BOUND) as pull:
        push = pusher(pull)
        asyncio.create_task(receive(pull))  # noqa: RUF006 - that nothing refers to it is the point
        await asyncio.sleep(0)
        del pull
        gc.collect()
        pool.push(push, b"message")
        await eventually_async(lambda: received == [b"message"])


async def _send_on_and_on(socket):
    while True:  # until nobody takes any more, or the lease has ended
        await socket.send(bytes(100_000))


async def _waiting_for(socket):
    """Return tasks that wait for a leased socket in every way in which one can."""
    calls = (socket.recv(), socket.recv_multipart(), socket.poll(), _send_on_and_on(socket))
    tasks = [asyncio.create_task(call) for call in calls]
    await eventually_async(lambda: len(socket._receivers) == 2 and socket._pollers and socket._senders)
    return tasks


@pytest.mark.parametrize("detaching", [False, True], ids=["ended", "detached"])
@pytest.mark.parametrize("kind", [SocketType.DEALER, SocketType.PAIR])
async def test_who_waits_beyond_the_lease_is_told(pool, kind, detaching):
    """A task that waits for a socket when its lease ends, or it is detached, fails, and so does what comes later."""
    peer = SocketConfig(kind, "tcp://127.0.0.1:*", bind=True)
    async with pool.socket(peer) as silent:
        endpoint = silent.last_endpoint.decode()
        config = SocketConfig(kind, endpoint, send_timeout=60, receive_timeout=60)
        lease = pool.socket(config)
        async with lease as socket:
            await socket.send(b"first")
            tasks = await _waiting_for(socket)
            mine = lease.detach() if detaching else None
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, LeaseEnded)
        for late in (socket.recv(), socket.send(b"later"), socket.poll(0)):
            with pytest.raises(LeaseEnded, match=f"{kind.name} {endpoint} has ended, or its socket was detached"):
                await late
        if mine is not None:
            assert not mine.closed
            mine.close(0)


async def test_a_task_that_was_woken_as_the_lease_ended_takes_no_message(pool):
    """What came in for the next lessee of a kept PULL is not taken by a task of the lease before."""
    async with pool.socket(BOUND) as pull:
        pool.push(pusher(pull), b"warm")
        assert b"warm" == await pull.recv()
        stray = asyncio.create_task(pull.recv())
        await eventually_async(lambda: pull._receivers)
        pull._receivers[0].set_result(None)  # as the loop does when there is a message, before it runs the task
        pool.push(pusher(pull), b"next")
    with pytest.raises(LeaseEnded):
        await stray
    async with pool.socket(BOUND) as pull:
        assert b"next" == await pull.recv()
