"""A pool that is stopped and started while threads use it."""

import asyncio
import contextlib
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import LeaseLeaked, NotSent, PoolClosed
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from app.pools.zmq_pool.attendant import Attendant
from app.pools.zmq_pool.context import shared_context
from tests.support.echo_process import echo_process
from tests.support.waiting import eventually


class Member:
    def __init__(self, fails=False):
        self.fails = fails
        self.served = 0
        self.finished = False

    def descriptor(self):
        if self.fails:
            raise zmq.ContextTerminated
        return

    def attend(self):
        self.served += 1
        return self.finished

    def close(self):
        pass


def test_a_member_that_fails_does_not_end_the_attendant():
    """The others are served on, also after one member's descriptor could not be had."""
    attendant = Attendant()
    good, bad = Member(), Member(fails=True)
    attendant.nudge(good)
    eventually(lambda: good.served)
    attendant.watch(bad)
    before = good.served
    try:
        eventually(lambda: good.served > before + 3, 3)
        assert attendant._thread.is_alive()
    finally:
        good.finished = True
        attendant.unwatch(good)
    eventually(lambda: attendant._thread is None)
    assert not bad.served


def test_a_pool_is_stopped_and_started_under_load():
    """Who uses a pool during its stop is told that it is stopped; afterwards it serves as before."""
    with echo_process("ROUTER") as server, ThreadPoolExecutor(8) as threads:
        pool = ZMQPool(ZMQPoolSettings(max_connections=4))
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=20)
        push = SocketConfig(SocketType.PUSH, server.endpoint, send_timeout=0.01, backlog=10, linger=0.01)
        ended, unexpected = threading.Event(), []

        def use(name):
            choose = random.Random(name)
            while not ended.is_set():
                body = os.urandom(8)
                try:
                    match choose.randrange(3):
                        case 0:
                            assert body == pool.request(config, body)
                        case 1:
                            pool.push(push, body)
                        case _:
                            assert body == asyncio.run(pool.request_async(config, body))
                except (PoolClosed, NotSent, zmq.ContextTerminated):
                    ended.wait(0.001)
                except Exception as error:  # noqa: BLE001 - collected, to be looked at
                    unexpected.append(repr(error))

        using = [threads.submit(use, name) for name in range(8)]
        choose = random.Random(1)
        try:
            for _ in range(25):
                pool.start()
                ended.wait(choose.random() * 0.05)
                with contextlib.suppress(LeaseLeaked):
                    pool.stop(choose.choice([0.0, 2.0]))
        finally:
            ended.set()
            pool.start()
        for each in using:
            each.result(30)
        assert [] == unexpected
        assert b"after" == pool.request(config, b"after")
        pool.stop(2)


def test_a_context_asked_for_beside_a_stop_is_given_up(monkeypatch):
    """Who asks for the context just before a stop gets it, and the stop gives it up; just after, PoolClosed."""
    pool = ZMQPool()
    ensure_running, shares = pool._ensure_running, shared_context._shares
    with ThreadPoolExecutor(1) as thread:
        stopping = []

        def and_stop():
            ensure_running()
            if not stopping:
                stopping.append(thread.submit(pool.stop, 0))
                wait(stopping, 0.5)

        monkeypatch.setattr(pool, "_ensure_running", and_stop)
        with contextlib.suppress(PoolClosed):
            assert pool.context
        stopping[0].result(20)
    assert shares == shared_context._shares
