"""The threads that start and stop parts."""

import asyncio
import threading

import pytest

from app.containers.workers import DaemonWorkers
from tests.support.waiting import eventually_async


async def test_a_cancelled_wait_leaves_the_thread_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cancelled task has waited for runs to its end, and its thread then does what comes next."""
    unexpected: list[object] = []
    monkeypatch.setattr(threading, "excepthook", unexpected.append)
    workers = DaemonWorkers("poolwire-test")
    hold = threading.Event()
    ended = threading.Event()

    def work() -> None:
        assert hold.wait(30)
        ended.set()

    waiting = asyncio.ensure_future(asyncio.wrap_future(workers.submit(work)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hold.set()
    await eventually_async(lambda: ended.is_set() and workers._idle == 1)

    assert await asyncio.wait_for(asyncio.wrap_future(workers.submit(lambda: 7)), 20) == 7
    assert workers._threads == 1
    assert unexpected == []
    workers.close()
