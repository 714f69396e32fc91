"""What a lessee was in the middle of costs its socket, and the next lessee nothing: each reads its own replies."""

import asyncio
import contextlib
import os
import signal
import threading

import pytest
import zmq
import zmq.asyncio

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NoReply
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo import replier
from tests.support.waiting import eventually_async


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings(max_connections=1)) as pool:
        yield pool


class Withheld:
    """Answers of a server that come when they are let go, and not before; all others come at once."""

    def __init__(self):
        self.go = threading.Event()
        self.asked = threading.Event()

    def answer(self, frames):
        if frames[-1].startswith(b"withheld"):
            self.asked.set()
            assert self.go.wait(60)
        return frames


@pytest.fixture
def withheld():
    answers = Withheld()
    yield answers
    answers.go.set()


@pytest.fixture
def endpoint(withheld):
    with replier(withheld.answer) as endpoint:
        yield endpoint


def send(socket, body):
    socket.send_multipart([b"", body] if socket.type == zmq.DEALER else [body])


def check_own_replies(pool, config, count=20):
    """Assert that so many lessees, one after the other, read the replies to their own requests."""
    for number in range(count):
        with pool.socket(config) as socket:
            send(socket, b"own %d" % number)
            assert b"own %d" % number == socket.recv_multipart()[-1]
    assert 0 == pool.get_stats()["metrics"]["active_connections"]


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
@pytest.mark.parametrize("caught", [True, False])
def test_a_timeout_costs_the_socket(pool, endpoint, withheld, kind, caught):
    """A reply that comes after its time limit reaches nobody, whether the lessee dealt with the error or not."""
    config = SocketConfig(kind, endpoint, receive_timeout=30)
    with expected(NoReply, caught=caught), pool.socket(config) as socket:
        socket.rcvtimeo = 100
        send(socket, b"withheld")
        with expected(NoReply, caught=not caught):
            socket.recv_multipart()
    assert socket.closed
    withheld.go.set()
    check_own_replies(pool, config)


@contextlib.contextmanager
def expected(error, *, caught):
    """Expect ``error`` from the block, unless something in it has caught that already."""
    with contextlib.nullcontext() if caught else pytest.raises(error):
        yield


def test_one_timeout_does_not_poison_the_endpoint(pool):
    """Requests that time out alternate with requests that are answered, on an endpoint with one socket."""
    with replier(lambda frames: None if frames[0] == b"silence" else frames) as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, send_timeout=30, receive_timeout=30, heartbeat=0)
        assert b"warm" == pool.request(config, b"warm")  # each that times out finds a socket that is connected
        for number in range(20):
            with pytest.raises(NoReply):
                pool.request(config, b"silence", timeout=0.02)
            assert b"%d" % number == pool.request(config, b"%d" % number)
        assert 1 == pool.get_stats()["metrics"]["total_connections"]


@pytest.mark.parametrize("multiplexed", [True, False])
async def test_one_timeout_of_a_task_does_not_poison_the_endpoint(pool, multiplexed):
    """Tasks whose requests time out leave those that are answered alone, through one connection or one REQ each."""
    with replier(lambda frames: None if frames[0] == b"silence" else frames) as endpoint:
        config = SocketConfig(
            SocketType.REQ, endpoint, send_timeout=30, receive_timeout=30, heartbeat=0, multiplexed=multiplexed
        )
        assert b"warm" == await pool.request_async(config, b"warm")  # those that time out are sent at once
        for number in range(10):
            with pytest.raises(NoReply):
                await pool.request_async(config, b"silence", timeout=0.05)
            assert b"%d" % number == await pool.request_async(config, b"%d" % number)


class Interrupt:
    """Has the main thread raise KeyboardInterrupt, as Ctrl-C does, once for each call."""

    def __init__(self):
        self._raised = threading.Event()

    def handle(self, *_):
        if not self._raised.is_set():
            self._raised.set()
            raise KeyboardInterrupt

    def when(self, event):
        """Interrupt in a thread, which is returned, when ``event`` is set.

        A signal that comes right before a system call does not interrupt it, so another one follows.
        """
        self._raised.clear()

        def run():
            assert event.wait(30)
            while not self._raised.is_set():
                os.kill(os.getpid(), signal.SIGUSR1)
                self._raised.wait(0.05)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.fixture
def interrupt():
    interrupt = Interrupt()
    before = signal.signal(signal.SIGUSR1, interrupt.handle)
    yield interrupt
    signal.signal(signal.SIGUSR1, before)


def ask_for_the_withheld(pool, config, leased, error=None):
    """Send the request whose answer is withheld, and wait for it, or fail."""
    with pool.socket(config) as socket:
        leased.append(socket)
        send(socket, b"withheld")
        if error is not None:
            raise error
        socket.recv_multipart()


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
def test_a_signal_during_a_receive_costs_the_socket(pool, endpoint, withheld, interrupt, kind):
    """Ctrl-C while a lessee waits for its reply ends the wait; that reply reaches nobody, and no place is lost."""
    config = SocketConfig(kind, endpoint, receive_timeout=60)
    for _ in range(3):
        withheld.asked.clear()
        withheld.go.clear()
        interrupting = interrupt.when(withheld.asked)
        leased = []
        with pytest.raises(KeyboardInterrupt):
            ask_for_the_withheld(pool, config, leased)
        interrupting.join(30)
        assert leased[0].closed
        withheld.go.set()
        check_own_replies(pool, config)


def test_a_signal_during_a_request_costs_the_socket(pool, endpoint, withheld, interrupt):
    """Ctrl-C ends a `request` that waits; the next one has a socket, and its own reply."""
    config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=60)
    interrupting = interrupt.when(withheld.asked)
    with pytest.raises(KeyboardInterrupt):
        pool.request(config, b"withheld")
    interrupting.join(30)
    withheld.go.set()
    check_own_replies(pool, config)


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, SystemExit])
def test_an_exception_after_the_request_costs_the_socket(pool, endpoint, withheld, kind, error):
    """The reply to a request whose lessee failed meanwhile reaches nobody."""
    config = SocketConfig(kind, endpoint, receive_timeout=30)
    leased = []
    with pytest.raises(error):
        ask_for_the_withheld(pool, config, leased, error)
    assert leased[0].closed
    withheld.go.set()
    check_own_replies(pool, config)


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
async def test_what_is_done_through_another_object_costs_the_socket(pool, endpoint, withheld, kind):
    """A lessee who uses the socket through one of zmq.asyncio leaves the reply that it did not get to nobody."""
    config = SocketConfig(kind, endpoint, receive_timeout=30)
    with pool.socket(config) as socket:
        other = zmq.asyncio.Socket.shadow(socket.underlying)
        await other.send_multipart([b"", b"withheld"] if kind is SocketType.DEALER else [b"withheld"])
        assert 30_000 == other.rcvtimeo
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.recv(), 0.3)
    assert socket.closed
    withheld.go.set()
    check_own_replies(pool, config)


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
async def test_a_cancellation_costs_the_socket(pool, endpoint, withheld, kind):
    """A task that is cancelled while it waits for its reply gives its socket up; nobody reads that reply."""
    config = SocketConfig(kind, endpoint, receive_timeout=30)
    leased = []

    async def ask():
        async with pool.socket(config) as socket:
            leased.append(socket)
            await socket.send_multipart([b"", b"withheld"] if kind is SocketType.DEALER else [b"withheld"])
            await socket.recv_multipart()

    for _ in range(3):
        withheld.asked.clear()
        withheld.go.clear()
        asking = asyncio.create_task(ask())
        await eventually_async(withheld.asked.is_set)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert leased.pop().closed
        withheld.go.set()
        await asyncio.to_thread(check_own_replies, pool, config)


async def test_a_task_that_is_cancelled_while_it_waits_for_a_socket_takes_none(pool, endpoint):
    """Of tasks that wait for the one socket, those that are cancelled lose nothing to the others."""
    config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=30)

    async def ask(body):
        async with pool.socket(config, timeout=30) as socket:
            await socket.send(body)
            return await socket.recv()

    for _ in range(5):
        async with pool.socket(config):
            tasks = [asyncio.create_task(ask(b"%d" % n)) for n in range(20)]
            await eventually_async(lambda: pool.get_stats()["pools"][config.label]["waiting"] == 20)
            for task in tasks[::2]:
                task.cancel()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert [b"%d" % n for n in range(1, 20, 2)] == outcomes[1::2]
        assert all(isinstance(each, asyncio.CancelledError) for each in outcomes[::2])
    figures = pool.get_stats()["pools"][config.label]
    assert (1, 0, 0) == (figures["total"], figures["active"], figures["waiting"])


def test_a_req_sends_no_more_frames_than_a_plain_one_unless_told_to(pool):
    """CORRELATE, whose extra frame breaks servers that unpack three, is an option that has to be asked for."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger, router.rcvtimeo = 0, 20_000
    router.bind("tcp://127.0.0.1:*")
    plain = SocketConfig(SocketType.REQ, router.last_endpoint.decode())
    correlated = SocketConfig(SocketType.REQ, router.last_endpoint.decode(), options={"REQ_CORRELATE": 1})
    try:
        for config, frames in ((plain, 3), (correlated, 4)):
            for _ in range(2):  # a new socket, and one that was used before
                with pool.socket(config) as socket:
                    socket.send(b"mine")
                    message = router.recv_multipart()
                    assert frames == len(message)
                    assert [b"", b"mine"] == message[-2:]
                    router.send_multipart(message)
                    assert b"mine" == socket.recv()
        assert 2 == pool.get_stats()["metrics"]["total_connections"]
        with pool.socket(correlated) as socket:
            socket.send(b"one")
            message = router.recv_multipart()
            another = bytes(255 - byte for byte in message[1])
            router.send_multipart([message[0], another, b"", b"somebody else's"])
            router.send_multipart(message)
            assert b"one" == socket.recv()
    finally:
        router.close()
        context.term()
