"""Event loops that do not run any more, or not now: what they left behind harms nobody else."""

import asyncio

import pytest

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NotSent
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo import replier
from tests.support.turnstile import turnstile
from tests.support.waiting import eventually

UNREAD_AT_MOST = 2000
"""Events of a monitor that libzmq keeps by default; then it waits."""


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
