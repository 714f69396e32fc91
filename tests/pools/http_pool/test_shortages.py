"""Requests of a process that may start no more threads, or open no more files."""

import asyncio
import math

import pytest

from app.pools.errors import HTTPUnavailable
from app.pools.http_pool import HTTPConfig, HTTPPool, sync_transport
from app.pools.http_pool.deadlines import Watchdog
from tests.support.descriptors import shortage
from tests.support.misbehaving import MisbehavingServer
from tests.support.threads import refuse_threads

NO_THREAD = r"brought no response after 2 attempt\(s\): NoThread: can't start new thread\. Raise the limit of threads"


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """A watchdog that has no thread yet, as in a process before its first request."""
    watchdog = Watchdog()
    monkeypatch.setattr(sync_transport, "watchdog", watchdog)
    return watchdog


@pytest.fixture
def config(server: MisbehavingServer) -> HTTPConfig:
    """A server that has a name and one place, and that one failure would have left alone."""
    return HTTPConfig(
        f"http://localhost:{server.port}", max_connections=1, max_retries=1, retry_delay=0.01, circuit_threshold=1
    )


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("asynchronous", "name"),
    [(False, "poolwire-http-deadlines"), (True, "asyncio_")],
    ids=["whose deadline nobody watches", "whose host nobody resolves"],
)
def test_a_request_that_lacks_a_thread_is_repeated_and_says_so(
    pool: HTTPPool,
    config: HTTPConfig,
    watchdog: Watchdog,
    monkeypatch: pytest.MonkeyPatch,
    asynchronous: bool,
    name: str,
    method: str,
) -> None:
    """It is an HTTPUnavailable that costs no place, and says nothing of the origin: the next request works."""

    def ask() -> int:
        if asynchronous:
            return asyncio.run(pool.request_async(config, method, "/echo", timeout=10)).status_code
        return pool.request(config, method, "/echo", timeout=10).status_code

    with monkeypatch.context() as patched:
        refuse_threads(patched, name)
        with pytest.raises(HTTPUnavailable, match=NO_THREAD) as caught:
            ask()
    assert 0 == pool.get_stats()["metrics"]["active_connections"]
    assert {} == watchdog._watched
    assert 200 == ask()
    del caught


def test_a_stream_whose_pause_nobody_watches_breaks_off(
    pool: HTTPPool, config: HTTPConfig, watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of threads a stream without a deadline is opened, and read of only while its pauses are watched."""
    refuse_threads(monkeypatch, "poolwire-http-deadlines")
    with pool.stream(config, "GET", "/data", timeout=math.inf) as response:
        with pytest.raises(HTTPUnavailable, match="broke off after 0 bytes: NoThread: can't start new thread"):
            response.read()

    assert 0 == pool.get_stats()["metrics"]["active_connections"]
    assert {} == watchdog._watched


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_request_that_lacks_a_descriptor_says_nothing_of_the_origin(
    pool: HTTPPool, server: MisbehavingServer, asynchronous: bool
) -> None:
    """It is an HTTPUnavailable that names the limit, and the next request is not refused because of it."""
    config = HTTPConfig(server.url, max_retries=0, circuit_threshold=1)

    async def ask() -> bool:
        if asynchronous:
            return (await pool.request_async(config, "GET", "/echo", timeout=10)).ok
        return pool.request(config, "GET", "/echo", timeout=10).ok

    async def ask_twice() -> None:
        with shortage(), pytest.raises(HTTPUnavailable, match=r"Too many open files\. Raise the limit \(ulimit -n"):
            await ask()
        assert await ask()

    asyncio.run(ask_twice())
