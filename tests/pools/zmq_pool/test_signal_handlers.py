"""Handlers of signals that stop the pool, lease and send, whatever their own thread is at when they come."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import zmq

from app.pools.core import forks
from app.pools.core.housekeeper import Housekeeper, housekeeper
from app.pools.errors import PoolClosed
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool, sentinel
from tests.support.echo import replier
from tests.support.waiting import eventually

_PUSHING = """
import json, random, signal, sys
from app.pools.errors import EndpointBusy, PoolClosed
from app.pools.zmq_pool import SocketConfig, ZMQPool
from tests.support.waiting import eventually

endpoint, action, frames, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
pool, config = ZMQPool(), SocketConfig("PUSH", endpoint, options={"SNDHWM": 0}, linger=10)
choose, total, refused, over = random.Random(rounds), 0, [], []

def push():
    global total
    total += 1
    try:
        pool.push(config, *[b"%d" % total] * frames)
    except PoolClosed:
        refused.append(total)
        over.append(True)

def lease():
    try:
        with pool.socket(config, timeout=1) as socket:
            socket.send_multipart([b"leased"] * frames)
    except EndpointBusy:
        pass

def handle(*_):
    pool.stop(30) if action == "stop" else lease()
    over.append(True)

signal.signal(signal.SIGALRM, handle)
for _ in range(rounds):
    pool.start()
    push()
    eventually(lambda: not pool.get_stats()["pools"][config.label]["queued"])
    over.clear()
    signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-4, 5e-3))
    while not over:
        push()
json.dump([total, refused], sys.stdout)
"""


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("action", ["stop", "lease"])
def test_a_handler_that_interrupts_a_push_waits_for_nothing_of_it(action, frames):
    """A handler stops the pool or leases in the middle of a push, and ends; what was accepted arrives, once."""
    over = []
    with zmq.Context() as context, context.socket(zmq.PULL) as sink, ThreadPoolExecutor(1) as threads:
        sink.linger, sink.rcvhwm = 0, 0
        sink.bind("tcp://127.0.0.1:*")

        def read():
            received = []
            while sink.poll(200) or not over:
                if sink.poll(0):
                    received.append(sink.recv_multipart())
            return received

        reading = threads.submit(read)
        run = [sys.executable, "-c", _PUSHING, sink.last_endpoint.decode(), action, str(frames), "20"]
        try:
            # Far less than a handler would take that waits for the time limit of each stop.
            done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
        finally:
            over.append(True)
        received = reading.result(30)
    assert (0, "") == (done.returncode, done.stderr)
    total, refused = json.loads(done.stdout)
    assert all([message[0]] * frames == message for message in received)
    numbers = [int(message[0]) for message in received if message[0] != b"leased"]
    assert len(numbers) == len(set(numbers))
    assert set(range(1, total + 1)) == set(numbers) ^ set(refused)


def test_a_stop_within_a_stop_ends_both(free_endpoint):
    """A handler that stops the pool while its own thread waits in a stop for an absent peer ends that wait, too."""
    pool, config = ZMQPool(), SocketConfig(SocketType.PUSH, free_endpoint, linger=0.01)
    stops = []

    def stop(*_):
        pool.stop(0.1)
        stops.append(True)

    previous = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(5):
            pool.start()
            pool.push(config, b"nobody takes this")
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            began = time.monotonic()
            pool.stop(60)
            assert time.monotonic() - began < 30
            assert stops.pop()
            assert pool.closed
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        pool.stop(0.1)


def in_time(call):
    """Return what ``call`` returns, in a thread that holds nobody up if it waits for itself."""
    outcome = Future()

    def run():
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(20)


@pytest.fixture
def interrupted_watch(monkeypatch):
    """The sockets that are opened to watch endpoints, and what is done, once, when the first of them are."""
    opened, handlers = [], []
    open_idle = sentinel.open_idle

    def open_and_be_interrupted(*args):
        pair = open_idle(*args)
        opened.extend(pair)
        if handlers:
            handlers.pop()()
        return pair

    monkeypatch.setattr(sentinel, "open_idle", open_and_be_interrupted)
    return opened, handlers


def test_a_handler_may_lease_while_its_thread_begins_to_watch_the_endpoint(interrupted_watch):
    """Both requests are answered, and the endpoint is watched once."""
    opened, handlers = interrupted_watch
    with ZMQPool() as pool, replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        handlers.append(lambda: pool.request(config, b"in the handler"))
        assert b"around it" == in_time(lambda: pool.request(config, b"around it"))
        assert not handlers
        assert [True, True, False, False] == sorted((each.closed for each in opened), reverse=True)
        eventually(lambda: pool.health()["endpoints"][endpoint])
    assert all(each.closed for each in opened)


def test_a_handler_may_stop_the_pool_while_its_thread_begins_to_watch_an_endpoint(interrupted_watch):
    """The request that was interrupted is refused, and no socket is left of it, which would keep the context open."""
    opened, handlers = interrupted_watch
    pool = ZMQPool()
    handlers.append(lambda: pool.stop(0.1))
    with pytest.raises(PoolClosed):
        in_time(lambda: pool.request(SocketConfig(SocketType.REQ, "tcp://127.0.0.1:9"), b"x"))
    assert opened
    assert all(each.closed for each in opened)


@pytest.mark.parametrize("held", ["housekeeper", "forks", "gate"])
def test_a_handler_may_start_and_stop_a_pool_whatever_its_thread_holds(held):
    """A pool is started, used and stopped by the thread that is in the middle of one of these."""
    pool = ZMQPool()
    lock = {"housekeeper": housekeeper._lock, "forks": forks._lock, "gate": pool._gate._lock}[held]

    def use():
        with lock:
            pool.start()
            reply = pool.request(SocketConfig(SocketType.REQ, endpoint), b"x")
            pool.stop(1)
            return reply

    with replier() as endpoint:
        assert b"x" == in_time(use)


class _Sweeper:
    def sweep(self):
        pass


def test_a_handler_may_start_the_housekeeper_while_its_thread_starts_it(monkeypatch):
    """One thread does the housekeeping, for both that were registered."""
    one, sweepers = Housekeeper(), [_Sweeper(), _Sweeper()]
    threads, start = [], threading.Thread.start

    def start_and_be_interrupted(thread):
        threads.append(thread)
        if len(threads) == 1:
            one.register(sweepers[1], 60)
        start(thread)

    def register():
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start_and_be_interrupted)
            one.register(sweepers[0], 60)

    in_time(register)
    eventually(lambda: 1 == sum(thread.is_alive() for thread in threads))
    assert one.alive
    for sweeper in sweepers:
        one.unregister(sweeper)
    eventually(lambda: not any(thread.is_alive() for thread in threads))
