"""A receiver that is alive and reads nothing for a while, as one that is busy does, loses nothing of what is pushed."""

import time

import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NotSent
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.waiting import eventually

BUSY_FOR = 4.5  # seconds; longer than a peer may leave a heartbeat unanswered


def body(number):
    return b"%d;" % number + b"x" * 10_000


def numbers(frames):
    return [int(frame.partition(b";")[0]) for frame in frames]


def fill(send, refusal):
    """Return how many messages were accepted, from number 1, before the first refusal."""
    for number in range(1, 20_000):
        try:
            send(body(number))
        except refusal:
            return number - 1
    raise AssertionError("no queue was full")


def be_busy():
    until = time.monotonic() + BUSY_FOR
    eventually(lambda: time.monotonic() > until)


def test_what_is_pushed_to_a_worker_that_is_busy_arrives():
    """What `push` accepted for a peer with a full queue arrives, in order, though it did not read for seconds."""
    context = zmq.Context()
    worker = context.socket(zmq.PULL)
    worker.linger, worker.rcvtimeo, worker.rcvhwm = 0, 10_000, 10
    worker.bind("tcp://127.0.0.1:*")
    config = SocketConfig(SocketType.PUSH, worker.last_endpoint.decode(), send_timeout=0.1, backlog=20, linger=5)
    with ZMQPool(ZMQPoolSettings()) as pool:
        accepted = fill(lambda frame: pool.push(config, frame), NotSent)
        be_busy()
        assert list(range(1, accepted + 1)) == numbers(worker.recv() for _ in range(accepted))
    worker.close()
    context.term()


def test_a_worker_of_ours_that_is_busy_gets_what_was_pushed_to_it():
    """A leased PULL that did not read for seconds, with its queue full, gets all that its peer could send, in order."""
    context = zmq.Context()
    pusher = context.socket(zmq.PUSH)
    pusher.linger, pusher.sndtimeo = 0, 100
    pusher.bind("tcp://127.0.0.1:*")
    config = SocketConfig(
        SocketType.PULL, pusher.last_endpoint.decode(), receive_timeout=10, options={"RCVHWM": 10, "RCVBUF": 100_000}
    )
    with ZMQPool(ZMQPoolSettings()) as pool, pool.socket(config) as worker:
        pusher.sndtimeo = 10_000
        pusher.send(body(0))
        assert [0] == numbers([worker.recv()])
        pusher.sndtimeo = 100
        sent = fill(pusher.send, zmq.Again)
        be_busy()
        assert list(range(1, sent + 1)) == numbers(worker.recv() for _ in range(sent))
    pusher.close()
    context.term()
