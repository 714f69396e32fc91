"""Handlers of signals that stop the pool, lease and send, whatever their own thread is at when they come."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool

_PUSHING = """
import json, random, signal, sys, time
from app.pools.errors import EndpointBusy, PoolClosed
from app.pools.zmq_pool import SocketConfig, ZMQPool

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
    while pool.get_stats()["pools"][config.label]["queued"]:
        time.sleep(0.001)
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
