"""The rate limit and the queue for max_concurrency."""

import asyncio
import time
from dataclasses import replace

import pytest

from app.pools.errors import DeadlineExceeded, PoolTimeout
from app.pools.http_pool import HTTPConfig, HTTPPool
from app.pools.http_pool.limits import Pacer
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import MisbehavingServer
from tests.support.waiting import eventually_async


def hold_up(seconds: float) -> None:
    """Keep the event loop from running."""
    time.sleep(seconds)


def test_turns_come_at_the_rate_after_the_burst() -> None:
    """A pacer gives its burst at once and then one turn per interval, in order."""
    pacer = Pacer(rate=10.0, burst=3)
    never = time.monotonic() + 1000
    turns = [pacer.reserve(never) for _ in range(6)]
    assert turns == [pytest.approx(wait, abs=0.05) for wait in (0.0, 0.0, 0.0, 0.1, 0.2, 0.3)]


def test_a_turn_after_the_deadline_is_not_taken() -> None:
    """A turn that would come too late is refused, and left to others."""
    pacer = Pacer(rate=1.0, burst=1)
    assert pacer.reserve(time.monotonic() + 10) == 0.0
    assert pacer.reserve(time.monotonic() + 0.1) is None
    assert pacer.reserve(time.monotonic() + 10) == pytest.approx(1.0, abs=0.1)


async def test_a_rate_is_kept_by_waiting(ask: Ask, config: HTTPConfig) -> None:
    """Requests above the rate wait for their turn; one whose turn is after its deadline fails at once."""
    config = replace(config, rate_limit=20.0)
    began = time.monotonic()
    await asyncio.gather(*(ask(config, "GET", "/echo") for _ in range(5)))
    assert time.monotonic() - began >= 0.19
    slow = replace(config, rate_limit=0.1)
    assert (await ask(slow, "GET", "/echo")).ok
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"rate_limit=0\.1"):
        await ask(slow, "GET", "/echo", timeout=5.0)
    assert time.monotonic() - began < 4


async def test_tenants_have_rates_of_their_own(ask: Ask, config: HTTPConfig) -> None:
    """Configurations with the same credentials share a rate; others do not."""
    alice = replace(config, rate_limit=0.1, auth="alice")
    assert (await ask(alice, "GET", "/echo")).ok
    assert (await ask(replace(alice, auth="bob"), "GET", "/echo")).ok
    with pytest.raises(DeadlineExceeded):
        await ask(replace(alice, max_retries=0), "GET", "/echo", timeout=1.0)


async def test_concurrency_is_bounded_and_fair(pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer) -> None:
    """No more than max_concurrency requests are under way, and they are served in the order of arrival."""
    config = replace(config, max_concurrency=1)
    tasks = []
    for i in range(10):
        tasks.append(asyncio.create_task(pool.request_async(config, "GET", f"/slow?s=0.01&i={i}")))
        await asyncio.sleep(0)
    assert pool.get_stats()["pools"][server.url]["in_flight"] == 10
    assert pool.get_stats()["pools"][server.url]["queued"] >= 8
    await asyncio.gather(*tasks)
    assert [each.query["i"] for each in server.seen] == [str(i) for i in range(10)]
    assert server.accepted == 1


async def test_the_queue_is_left_at_the_deadline(ask: Ask, config: HTTPConfig, server: MisbehavingServer) -> None:
    """A request that finds no place until its deadline raises a TimeoutError, and takes nobody's place."""
    config = replace(config, max_concurrency=1)
    first = asyncio.create_task(ask(config, "GET", "/slow?s=1"))
    await eventually_async(lambda: server.requests_to("/slow"))
    with pytest.raises(PoolTimeout):
        await ask(config, "GET", "/echo", timeout=0.1)
    assert (await first).ok
    assert (await ask(config, "GET", "/echo")).ok


async def test_who_finds_no_place_reads_of_max_concurrency(ask: Ask, config: HTTPConfig, pool: HTTPPool) -> None:
    """The error names the setting that gives the places, not that of the connections."""
    config = replace(config, max_concurrency=1)
    async with pool.stream(config, "GET", "/events?n=1&then=hang"):
        with pytest.raises(PoolTimeout, match=r"or raise max_concurrency of its HTTPConfig$"):
            await ask(config, "GET", "/echo", timeout=0.5)


@pytest.mark.parametrize("limit", ["max_connections", "max_concurrency"])
async def test_who_waits_in_vain_learns_who_has_what_there_is(
    ask: Ask, config: HTTPConfig, pool: HTTPPool, server: MisbehavingServer, limit: str
) -> None:
    """The error names the counts, the longest holder and the limit, and says nothing of the server, which was not
    asked."""
    config = replace(config, circuit_threshold=1, **{limit: 1})
    async with pool.stream(config, "GET", "/events?n=1&then=hang"):
        with pytest.raises(PoolTimeout, match=rf"[01] of 1 in use, 0 waiting.*or raise {limit} of") as caught:
            await ask(config, "GET", "/echo", timeout=0.3)
        assert "test_limits.py" in str(caught.value.longest_holder)
        assert caught.value.waited == pytest.approx(0.3, abs=0.25)
    assert 1 == len(server.seen)
    figures = pool.get_stats()["pools"][server.url]
    assert (0, 0) == (figures["deadline_hits"], figures["circuit_trips"])
    assert (await ask(config, "GET", "/echo")).ok


@pytest.mark.parametrize("limit", ["max_connections", "max_concurrency"])
async def test_a_stream_that_waits_in_vain_learns_so(config: HTTPConfig, pool: HTTPPool, limit: str) -> None:
    """A task's stream that finds no place until its deadline raises a PoolTimeout when it is entered."""
    config = replace(config, **{limit: 1})
    async with pool.stream(config, "GET", "/events?n=1&then=hang"):
        with pytest.raises(PoolTimeout, match=rf"or raise {limit} of"):
            await pool.stream(config, "GET", "/echo", timeout=0.1).__aenter__()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_who_waits_in_vain_in_a_busy_loop(config: HTTPConfig, pool: HTTPPool, cancelled: bool) -> None:
    """Where a loop finds every deadline passed at once, too, waiting ends in a PoolTimeout, and cancelled stays so."""
    config = replace(config, max_connections=1)
    async with pool.stream(config, "GET", "/events?n=1&then=hang"):
        for _ in range(5):
            waiting = asyncio.create_task(pool.request_async(config, "GET", "/echo", timeout=0.1))
            await asyncio.sleep(0)
            hold_up(0.11)
            if cancelled:
                waiting.cancel()
            with pytest.raises(asyncio.CancelledError if cancelled else PoolTimeout):
                await waiting


async def test_a_stream_holds_its_place(pool: HTTPPool, config: HTTPConfig) -> None:
    """A stream counts against max_concurrency until it is closed."""
    config = replace(config, max_concurrency=1)
    async with pool.stream(config, "GET", "/events?n=1&then=hang"):
        with pytest.raises(PoolTimeout):
            await pool.request_async(config, "GET", "/echo", timeout=0.1)
    assert (await pool.request_async(config, "GET", "/echo")).ok
