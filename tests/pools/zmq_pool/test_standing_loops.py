"""Event loops that do not run any more, or not now: what they left behind harms nobody else."""

import asyncio
import gc
import threading
import time
import weakref

import pytest

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NotSent
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo import replier
from tests.support.turnstile import turnstile
from tests.support.waiting import eventually, eventually_async

UNREAD_AT_MOST = 2000
"""Events of a monitor that libzmq keeps by default; then it waits."""


IMPATIENT = ZMQPoolSettings(max_idle_time=0.2)


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("ending", ["stopped", "closed"])
def test_what_a_loop_does_not_read_holds_up_nobody(loop, ending):
    """However often an endpoint is lost to a loop that stands still, others are served, and the pool stops."""
    with replier() as good, turnstile() as bad, ZMQPool(ZMQPoolSettings()) as pool:
        # Many attempts, to get there soon.
        refused = SocketConfig(SocketType.REQ, bad.endpoint, options={"RECONNECT_IVL": 1})
        with pytest.raises(NotSent):
            loop.run_until_complete(pool.request_async(refused, b"anyone?", timeout=0.1))
        if ending == "closed":
            loop.close()
        enough = bad.accepted + 2 * (UNREAD_AT_MOST + 500)  # every other one is the sentinel's, whose monitor is read
        eventually(lambda: bad.accepted > enough, 60)
        assert b"ok" == pool.request(SocketConfig(SocketType.REQ, good), b"ok")
        pool.stop(timeout=1)


async def ask_in_vain(pool, config):
    """Begin a request that is never answered, and leave it behind."""
    asking = asyncio.create_task(pool.request_async(config, b"silence"))
    await eventually_async(
        lambda: asking.done() or pool.get_stats()["pools"][f"{config.label} (asyncio)"]["in_flight"] > 0
    )
    return asking


@pytest.mark.filterwarnings("ignore:unclosed event loop")
@pytest.mark.parametrize("waiting", [False, True])
def test_nothing_is_kept_for_a_loop_that_was_dropped(waiting):
    """After the idle time a loop that nobody closed is freed, and its connection closed, whatever it waits for."""
    with replier(lambda body: None if body == [b"silence"] else body) as endpoint, ZMQPool(IMPATIENT) as pool:
        config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=100)

        def use_another_loop():
            loop = asyncio.new_event_loop()
            assert b"ok" == loop.run_until_complete(pool.request_async(config, b"ok"))
            if waiting:
                asking = loop.run_until_complete(ask_in_vain(pool, config))
                asking._log_destroy_pending = False
            return weakref.ref(loop)

        loops = [use_another_loop() for _ in range(5)]

        def freed():
            pool.sweep()
            gc.collect()
            return not any(loop() for loop in loops)

        eventually(freed)
        assert {} == pool.get_stats()["pools"]


def test_a_loop_that_runs_again_asks_through_another_connection(loop):
    """A loop whose connection was closed while it stood still goes on, as often as that happens."""
    with replier() as endpoint, ZMQPool(IMPATIENT) as pool:
        config = SocketConfig(SocketType.REQ, endpoint)
        for _ in range(5):
            assert b"ok" == loop.run_until_complete(pool.request_async(config, b"ok"))

            def closed():
                pool.sweep()
                return f"{config.label} (asyncio)" not in pool.get_stats()["pools"]

            eventually(closed)


def test_a_loop_that_begins_to_run_as_it_is_swept_loses_no_request(loop):
    """Whatever the moment at which housekeeping finds a loop at rest, its next request is answered."""
    with replier() as endpoint, ZMQPool(ZMQPoolSettings(max_idle_time=1e-9)) as pool:
        config = SocketConfig(SocketType.REQ, endpoint)
        ended = threading.Event()

        def sweep():
            while not ended.is_set():
                pool.sweep()

        sweeping = threading.Thread(target=sweep)
        sweeping.start()
        try:
            for number in range(300):
                assert b"%d" % number == loop.run_until_complete(pool.request_async(config, b"%d" % number))
        finally:
            ended.set()
            sweeping.join(10)


def test_a_stop_waits_for_all_busy_loops_together():
    """A stop takes its time limit and a moment, however many loops are in a call that does not come to an end."""
    many = 20
    released = threading.Event()
    asked = threading.Barrier(many + 1)

    async def block(pool, config):
        assert b"ok" == await pool.request_async(config, b"ok")
        asked.wait(30)
        released.wait(60)  # the loop is not to run meanwhile

    with replier() as endpoint:
        pool = ZMQPool(ZMQPoolSettings())
        config = SocketConfig(SocketType.REQ, endpoint)
        threads = [threading.Thread(target=lambda: asyncio.run(block(pool, config))) for _ in range(many)]
        for thread in threads:
            thread.start()
        asked.wait(30)
        context = pool.context
        began = time.monotonic()
        pool.stop(timeout=0.1)
        assert time.monotonic() - began < many / 2  # one after the other they would take a second each
        released.set()
        for thread in threads:
            thread.join(10)
        eventually(lambda: context.closed)
