"""Hours of churn in seconds: threads and tasks that treat sockets of every type badly leave nothing behind."""

import asyncio
import gc
import itertools
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import PoolError
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo_process import echo_process
from tests.support.waiting import eventually

CHURN_SECONDS = float(os.environ.get("POOLWIRE_CHURN_SECONDS", "5"))

THREADS, TASKS, CAP = 32, 32, 16

MISUSES = (LookupError, KeyboardInterrupt)
"""What a lessee fails with, besides the pool's own errors."""


class Churn:
    """Uses a pool in every way that it has, and fails at random inside the leases.

    Args:
        pool: the pool.
        echo: the endpoint of a server that returns what it gets, except ``silence``.
        endpoints: where the pool's own sockets bind: a PULL, a PUB and a REP.
    """

    def __init__(self, pool, echo, endpoints):
        self.pool = pool
        work, news, service = endpoints
        brief = {"receive_timeout": 0.2, "send_timeout": 0.2}
        self.req = SocketConfig(SocketType.REQ, echo, **brief)
        self.dealer = SocketConfig(SocketType.DEALER, echo, **brief)
        self.push = SocketConfig(SocketType.PUSH, work, send_timeout=0.05, backlog=100, linger=0.1)
        self.pull = SocketConfig(SocketType.PULL, work, bind=True)
        self.pub = SocketConfig(SocketType.PUB, news, bind=True, subscriber_wait=0.05, linger=0.1)
        self.sub = SocketConfig(SocketType.SUB, news)
        self.rep = SocketConfig(SocketType.REP, service, bind=True, linger=0.1)
        self.client = SocketConfig(SocketType.REQ, service, **brief)
        self.numbers = itertools.count()
        self.pulled = []
        self.uses = {}

    def body(self):
        """Return what was never sent before, and does not begin with anything that was."""
        return b"%d;" % next(self.numbers)

    def run(self, name, deadline):
        """Use the pool until ``deadline``, with choices that ``name`` determines."""
        choose = random.Random(name)
        ways = (self.request, self.request_in_vain, self.lease, self.subscribe, self.send_off, self.take, self.serve)
        while time.monotonic() < deadline:
            way = choose.choice(ways)
            try:
                way(choose, self.body())
                self.uses[way.__name__] = self.uses.get(way.__name__, 0) + 1
            except (*MISUSES, PoolError):
                pass

    @staticmethod
    def fail_at_random(choose, socket):
        """Do to a leased socket what a lessee should not; return whether it is the lessee's no more."""
        match choose.randrange(8):
            case 0 | 1:
                raise choose.choice(MISUSES)
            case 2:
                socket.close()
                return True
            case 3:
                return True  # with whatever it was in the middle of
        return False

    def request(self, choose, body):
        config = choose.choice([self.req, self.client])
        assert body == self.pool.request(config, body)

    def request_in_vain(self, choose, body):
        if choose.random() < 0.1:
            self.pool.request(self.req, b"silence", timeout=0.02)

    def lease(self, choose, body):
        config = choose.choice([self.req, self.dealer, self.client])
        with self.pool.socket(config) as socket:
            if self.fail_at_random(choose, socket):
                return
            socket.send_multipart([b"", body] if config is self.dealer else [body])
            if not self.fail_at_random(choose, socket):
                assert body == socket.recv_multipart()[-1]

    def subscribe(self, choose, body):
        with self.pool.socket(self.sub) as socket:
            socket.subscribe(body)
            for _ in range(20):
                self.pool.publish(self.pub, body)
                if socket.poll(2):
                    assert body == socket.recv()  # and nothing that another lessee has subscribed to
                    self.fail_at_random(choose, socket)
                    return

    def send_off(self, choose, body):
        config, send = choose.choice([(self.push, self.pool.push), (self.pub, self.pool.publish)])
        if choose.random() < 0.8:
            send(config, body)
            return
        with self.pool.socket(config, timeout=0.2) as socket:
            socket.send(body)
            if config is self.push:
                self.fail_at_random(choose, socket)

    def take(self, choose, body):
        with self.pool.socket(self.pull) as socket:
            for _ in range(50):
                if not socket.poll(2):
                    return
                self.pulled.append(socket.recv())
            self.fail_at_random(choose, socket)

    def serve(self, choose, body):
        with self.pool.socket(self.rep) as socket:
            for _ in range(50):
                if not socket.poll(5):
                    return
                request = socket.recv()
                if choose.random() < 0.02 and self.fail_at_random(choose, socket):
                    return
                socket.send(request)

    async def run_tasks(self, names, deadline):
        """Use the pool until ``deadline``, in a task for each of ``names``."""
        await asyncio.gather(*(self._run_task(name, deadline) for name in names))

    async def _run_task(self, name, deadline):
        choose = random.Random(name)
        ways = (self.request_async, self.lease_async, self.subscribe_async)
        while time.monotonic() < deadline:
            way = choose.choice(ways)
            try:
                async with asyncio.timeout(choose.choice([0.001, 5])):
                    await way(choose, self.body())
                self.uses[way.__name__] = self.uses.get(way.__name__, 0) + 1
            except (TimeoutError, LookupError, PoolError):
                await asyncio.sleep(0)  # a lease that is refused at once would keep the others from their turn

    async def request_async(self, choose, body):
        assert body == await self.pool.request_async(self.req, body)

    async def lease_async(self, choose, body):
        async with self.pool.socket(choose.choice([self.req, self.client])) as socket:
            await socket.send(body)
            if choose.random() < 0.1:
                raise LookupError
            assert body == await socket.recv()

    async def subscribe_async(self, choose, body):
        async with self.pool.socket(self.sub) as socket:
            socket.subscribe(body)
            for _ in range(20):
                self.pool.publish(self.pub, body)
                if await socket.poll(2):
                    assert body == await socket.recv()
                    return


@pytest.fixture
def endpoints():
    """Three endpoints of 127.0.0.1 on which nothing listens."""
    context = zmq.Context()
    sockets = [context.socket(zmq.PULL) for _ in range(3)]
    found = []
    for socket in sockets:
        socket.bind("tcp://127.0.0.1:*")
        found.append(socket.last_endpoint.decode())
    for socket in sockets:
        socket.close(0)
    context.term()
    return found


def test_churn_ends_with_nothing_leased_and_no_descriptor_lost(endpoints):
    """32 threads and 32 tasks that fail, are interrupted, time out, cancel and close at random leave nothing behind.

    No caller gets what is another's, no cap is exceeded, nothing is leased at the end. The process then has the
    descriptors of the sockets that are open, and after the pool's stop those that it had before its start.
    """
    process = psutil.Process()
    pool = ZMQPool(ZMQPoolSettings(max_connections=CAP, checkout_timeout=2))
    with echo_process("ROUTER") as server, ThreadPoolExecutor(THREADS + 1) as threads:
        churn = Churn(pool, server.endpoint, endpoints)
        gc.collect()
        before = process.num_fds()
        for _ in range(2):  # the second round would show what the first one left
            with pool:
                deadline = time.monotonic() + CHURN_SECONDS / 2
                running = [threads.submit(churn.run, name, deadline) for name in range(THREADS)]
                names = range(THREADS, THREADS + TASKS)
                running.append(threads.submit(asyncio.run, churn.run_tasks(names, deadline)))
                for each in running:
                    each.result(CHURN_SECONDS + 60)
                pool.sweep()
                stats = pool.get_stats()
                assert 0 == stats["metrics"]["active_connections"]
                for label, figures in stats["pools"].items():
                    assert 0 == figures["waiting"], label
                    assert figures["total"] <= figures["capacity"], label
                needed = descriptors_of(stats)
                eventually(lambda needed=needed: process.num_fds() - before <= needed)
            gc.collect()
            eventually(lambda: process.num_fds() <= before)
        assert len(set(churn.pulled)) == len(churn.pulled)
        assert churn.pulled
        assert 10 == len(churn.uses)  # each way of use came to a good end, now and then


def descriptors_of(stats):
    """Return how many descriptors the open sockets need at most, their peers in this process included."""
    watched = {label.split()[1] for label, figures in stats["pools"].items() if "endpoint_up" in figures}
    # A socket has its own, its connection, and that connection's other end; a sentinel has a monitor's two besides.
    # The context, the threads of libzmq, the attendant and the housekeeper have 8 in all.
    return 3 * stats["metrics"]["total_connections"] + 5 * len(watched) + 8
