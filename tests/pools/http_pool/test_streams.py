"""Streams and server-sent events: as they arrive, within their timeouts, closed whatever happens."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeAlias

import pytest

from app.pools.errors import (
    DeadlineExceeded,
    HTTPUnavailable,
    NotAnEventStream,
    PoolError,
    ResponseTooLarge,
)
from app.pools.http_pool import HTTPClient, HTTPConfig, HTTPPool, HTTPStatusError
from tests.support.misbehaving import MisbehavingServer
from tests.support.waiting import eventually_async

Read: TypeAlias = "Callable[..., Awaitable[bytes]]"
Events: TypeAlias = "Callable[..., Awaitable[list[Any]]]"


@pytest.fixture(params=["sync", "async"])
def read(request: pytest.FixtureRequest, pool: HTTPPool) -> Read:
    """Read a stream to its end, in a thread or in a task."""

    def sync(config: HTTPConfig, path: str, **options: Any) -> bytes:
        with pool.stream(config, "GET", path, **options) as response:
            return b"".join(response.iter_bytes())

    async def read(config: HTTPConfig, path: str, **options: Any) -> bytes:
        if request.param == "sync":
            return await asyncio.to_thread(sync, config, path, **options)
        async with pool.stream(config, "GET", path, **options) as response:
            return b"".join([piece async for piece in response.iter_bytes()])

    return read


@pytest.fixture(params=["sync", "async"])
def events(request: pytest.FixtureRequest, pool: HTTPPool) -> Events:
    """Collect the events of a stream, in a thread or in a task; ``limit`` leaves it early."""

    def sync(config: HTTPConfig, path: str, limit: int, options: Any) -> list[Any]:
        with pool.sse(config, "GET", path, **options) as stream:
            return [event.json() for event, _ in zip(stream, range(limit), strict=False)]

    async def events(config: HTTPConfig, path: str, limit: int = 1000, **options: Any) -> list[Any]:
        if request.param == "sync":
            return await asyncio.to_thread(sync, config, path, limit, options)
        found: list[Any] = []
        async with pool.sse(config, "GET", path, **options) as stream:
            async for event in stream:
                found.append(event.json())
                if len(found) == limit:
                    break
        return found

    return events


async def test_a_stream_yields_the_whole_body(read: Read, config: HTTPConfig, server: MisbehavingServer) -> None:
    """A stream read to its end is the body, and its connection serves the next one."""
    for _ in range(3):
        assert await read(config, "/large?size=300000") == b"a" * 300_000
    assert server.accepted == 1


async def test_a_compressed_stream_is_decompressed(read: Read, config: HTTPConfig) -> None:
    """What is streamed is decompressed as it comes."""
    assert await read(config, "/bomb?mb=2") == bytes(2 << 20)


async def test_events_arrive_as_they_are_sent(pool: HTTPPool, config: HTTPConfig) -> None:
    """The first event is there long before the last one is sent, synchronously and asynchronously."""

    def first() -> float:
        began = time.monotonic()
        with pool.sse(config, "GET", "/events?n=2&every=3") as stream:
            assert next(stream).json() == {"token": 0}
        return time.monotonic() - began

    async def first_async() -> float:
        began = time.monotonic()
        async with pool.sse(config, "GET", "/events?n=2&every=3") as stream:
            assert (await anext(stream)).json() == {"token": 0}
        return time.monotonic() - began

    assert await asyncio.to_thread(first) < 2.5
    assert await first_async() < 2.5


async def test_all_events_arrive(events: Events, config: HTTPConfig, server: MisbehavingServer) -> None:
    """Every event arrives, and a stream that ended gives its connection back."""
    for _ in range(2):
        assert await events(config, "/events?n=50") == [{"token": i} for i in range(50)]
    assert server.accepted == 1
    assert server.seen[0].headers["accept"] == "text/event-stream"


async def test_leaving_early_closes_the_stream(
    events: Events, pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """A stream left before its end is closed at once, and nothing stays checked out."""
    assert await events(config, "/events?n=3&then=hang", limit=2) == [{"token": 0}, {"token": 1}]
    await eventually_async(lambda: server.connected == 0)
    assert pool.get_stats()["metrics"]["active_connections"] == 0


async def test_a_silent_stream_meets_its_idle_timeout(events: Events, config: HTTPConfig) -> None:
    """A stream on which nothing arrives for idle_timeout raises DeadlineExceeded, after what did arrive."""
    with pytest.raises(DeadlineExceeded, match=r"sent nothing for 0\.2 s"):
        await events(config, "/events?n=3&then=hang", idle_timeout=0.2)


async def test_a_lively_stream_outlives_both_timeouts(events: Events, config: HTTPConfig) -> None:
    """The timeout is for the headers and the idle timeout for each pause: together they do not bound a stream."""
    config = replace(config, timeout=2.0, idle_timeout=2.0)
    assert len(await events(config, "/events?n=12&every=0.25")) == 12


async def test_a_total_timeout_bounds_a_stream(read: Read, config: HTTPConfig) -> None:
    """total_timeout ends a stream that never pauses and never ends."""
    with pytest.raises(DeadlineExceeded):
        await read(config, "/trickle?every=0.01", total_timeout=0.5)


async def test_a_first_byte_that_does_not_come_is_not_waited_for(read: Read, config: HTTPConfig) -> None:
    """timeout= bounds the wait for the headers."""
    for path in ("/hang", "/trickle?what=headers"):
        with pytest.raises(DeadlineExceeded, match=r"did not end within 0\.2 s"):
            await read(config, path, timeout=0.2)


async def test_the_readers_own_time_does_not_count(pool: HTTPPool, config: HTTPConfig) -> None:
    """A reader that is slower than the idle timeout still gets everything."""

    def slowly() -> int:
        with pool.stream(config, "GET", "/large?size=2000000", idle_timeout=0.3) as response:
            pieces = response.iter_bytes()
            size = len(next(pieces))
            time.sleep(0.5)
            return size + sum(map(len, pieces))

    assert await asyncio.to_thread(slowly) == 2_000_000
    async with pool.stream(config, "GET", "/large?size=2000000", idle_timeout=0.3) as response:
        size = 0
        async for piece in response.iter_bytes():
            if not size:
                await asyncio.sleep(0.5)
            size += len(piece)
    assert size == 2_000_000


async def test_a_stream_that_breaks_off_says_so(events: Events, config: HTTPConfig, server: MisbehavingServer) -> None:
    """A stream cut short raises HTTPUnavailable, and is not asked for again."""
    with pytest.raises(HTTPUnavailable, match="broke off after"):
        await events(config, "/events?n=3&then=cut")
    assert len(server.seen) == 1


async def test_retries_end_where_a_stream_begins(read: Read, config: HTTPConfig, server: MisbehavingServer) -> None:
    """Failing attempts before the stream are retried and redirects followed, with no connection left behind."""
    assert await read(config, "/status?code=503&n=2")
    assert await read(config, "/redirect", params={"to": "/large?size=10"}) == b"a" * 10
    assert server.connected <= 1


@pytest.mark.parametrize("path", ["/endless", "/bomb?mb=100", "/large?size=2000000"])
async def test_a_stream_has_a_size_limit(read: Read, pool: HTTPPool, config: HTTPConfig, path: str) -> None:
    """A stream larger than max_size, decompressed, raises ResponseTooLarge."""
    with pytest.raises(ResponseTooLarge, match="more than 1000000 bytes"):
        await read(config, path, max_size=1_000_000)
    assert pool.get_stats()["metrics"]["active_connections"] == 0


async def test_sse_wants_events(events: Events, config: HTTPConfig, pool: HTTPPool) -> None:
    """A failing status raises HTTPStatusError with the body; another content type raises NotAnEventStream."""
    with pytest.raises(HTTPStatusError) as caught:
        await events(config, "/status?code=404")
    assert caught.value.response.json() == {}
    with pytest.raises(NotAnEventStream, match="'application/json' instead of text/event-stream"):
        await events(config, "/echo")
    assert pool.get_stats()["metrics"]["active_connections"] == 0


async def test_lines_are_cut_where_they_end(pool: HTTPPool, config: HTTPConfig) -> None:
    """iter_lines yields lines without their ends, the last one too; read returns the rest."""
    body = "eins\r\nzwei ü\n\ndrei".encode()
    options: dict[str, Any] = {"params": {"type": "text/plain; charset=utf-8"}, "data": body}
    with pool.stream(config, "PUT", "/body", **options) as response:
        assert list(response.iter_lines()) == ["eins", "zwei ü", "", "drei"]
    async with pool.stream(config, "PUT", "/body", **options) as one:
        assert [line async for line in one.iter_lines()] == ["eins", "zwei ü", "", "drei"]
    async with pool.stream(config, "PUT", "/body", **options) as other:
        assert (other.status_code, await other.read(), other.headers["content-length"]) == (200, body, "19")


async def test_a_stream_is_entered_once(pool: HTTPPool, config: HTTPConfig) -> None:
    """A stream that was left cannot be entered again; one that was never entered holds nothing."""
    pool.stream(config, "GET", "/echo")
    stream = HTTPClient(pool, config).stream("GET", "/echo")
    with stream as response:
        assert response.read()
    with pytest.raises(RuntimeError, match="entered once"):
        stream.__enter__()
    assert pool.get_stats()["metrics"]["active_connections"] == 0


async def test_cancelled_streams_leave_nothing_behind(
    pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """Tasks cancelled while they stream give everything back."""

    async def follow() -> None:
        async with pool.sse(config, "GET", "/events?n=1000&every=0.002") as stream:
            async for _ in stream:
                pass

    tasks = [asyncio.create_task(follow()) for _ in range(20)]
    for i, task in enumerate(tasks):
        await asyncio.sleep(0.003 * (i % 5))
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    figures = pool.get_stats()
    assert figures["metrics"]["active_connections"] == 0
    assert figures["pools"][server.url]["in_flight"] == 0
    await eventually_async(lambda: server.connected == 0)


async def test_a_body_can_be_streamed_up(pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer) -> None:
    """An iterable of bytes is sent as it is produced; an asynchronous one too."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one", b"two"):
            yield piece

    await asyncio.to_thread(pool.request, config, "POST", "/echo", data=iter([b"one", b"two"]))
    await pool.request_async(config, "POST", "/echo", data=pieces())
    assert [each.body for each in server.seen] == [b"onetwo", b"onetwo"]


def test_every_error_is_a_pool_error() -> None:
    """Whoever catches PoolError catches everything that a stream raises."""
    for error in (DeadlineExceeded, HTTPUnavailable, NotAnEventStream, ResponseTooLarge, HTTPStatusError):
        assert issubclass(error, PoolError)
