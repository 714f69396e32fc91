"""`request_many`: one deadline for all of it, and no reply to what was not asked."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NoReply, NotSent, UnexpectedReply
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo import replier
from tests.support.waiting import eventually


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


def test_nobody_is_waited_for_longer_than_the_timeout_of_the_call(pool, free_endpoint):
    """Where nobody listens the call ends with its own timeout, not with the configuration's longer ones."""
    config = SocketConfig(SocketType.REQ, free_endpoint, send_timeout=60, receive_timeout=60)
    began = time.monotonic()
    with pytest.raises(NotSent):
        pool.request_many(config, [b"a"], timeout=0.2)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("multiplexed", [True, False])
def test_the_timeout_is_that_of_all_requests_together(pool, multiplexed):
    """Requests that are each answered in time, and together are not, fail when the time for all of them is over."""

    def answer_late(frames):
        time.sleep(0.01)
        return frames

    with replier(answer_late) as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, multiplexed=multiplexed)
        with pytest.raises((NoReply, NotSent)):
            pool.request_many(config, itertools.repeat(b"a", 1000), timeout=0.5)


@pytest.mark.parametrize("multiplexed", [True, False])
def test_nothing_is_sent_after_the_deadline(pool, multiplexed):
    """A request that is given when the time for all of them is over is NotSent, and never executed."""
    seen = []

    def answer(frames):
        seen.append(frames)
        return frames

    def bodies(until):
        yield b"in time"
        eventually(lambda: time.monotonic() > until)
        yield b"late"

    with replier(answer) as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, multiplexed=multiplexed)
        with pytest.raises(NotSent, match="the time for all requests was over"):
            pool.request_many(config, bodies(time.monotonic() + 2), timeout=2)
        assert b"after" == pool.request(config, b"after")
        assert [[b"in time"], [b"after"]] == seen


@pytest.mark.parametrize("number", [b"7", b"-1", b"one", b"9" * 5000])
def test_a_reply_to_what_was_not_asked_is_an_error(pool, number):
    """A reply with a number that no request had is an UnexpectedReply."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server, ThreadPoolExecutor(1) as threads:
        server.linger, server.rcvtimeo = 0, 10_000
        server.bind("tcp://127.0.0.1:*")

        def answer():
            peer, _, *rest = server.recv_multipart()
            server.send_multipart([peer, number, *rest])

        answering = threads.submit(answer)
        config = SocketConfig(SocketType.REQ, server.last_endpoint.decode())
        with pytest.raises(UnexpectedReply):
            pool.request_many(config, [b"a"])
        answering.result(10)
