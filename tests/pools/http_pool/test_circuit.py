"""The circuit: it opens, probes, closes, and is never left half-open."""

import asyncio
import re
from dataclasses import replace

import pytest

from app.pools.errors import CircuitOpen, DeadlineExceeded, HTTPUnavailable
from app.pools.http_pool import HTTPConfig, HTTPPool
from app.pools.http_pool.circuit import Circuit
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import MisbehavingServer
from tests.support.waiting import eventually, eventually_async


def admitted(circuit: Circuit) -> bool:
    try:
        probe = circuit.admit()
    except CircuitOpen:
        return False
    circuit.settle(probe=probe, healthy=None)
    return True


def test_failures_in_a_row_open_it_and_a_success_starts_the_count_anew() -> None:
    """The circuit opens after threshold failures in a row; a success between them starts the count again."""
    circuit = Circuit("o", threshold=3, reset=60.0)
    for healthy in (False, False, True, False, False):
        circuit.settle(probe=circuit.admit(), healthy=healthy)
    assert not circuit.open
    circuit.settle(probe=circuit.admit(), healthy=False)
    assert circuit.open
    assert circuit.trips == 1
    with pytest.raises(CircuitOpen, match="o keeps failing") as caught:
        circuit.admit()
    assert 0 < caught.value.retry_in <= 60


def test_a_threshold_of_zero_never_opens() -> None:
    """A threshold of 0 turns the circuit off."""
    circuit = Circuit("o", threshold=0, reset=60.0)
    for _ in range(100):
        circuit.settle(probe=circuit.admit(), healthy=False)
    assert not circuit.open


def test_one_probe_at_a_time_decides() -> None:
    """After the reset time one request is let through: a failure keeps the circuit open, a success closes it."""
    circuit = Circuit("o", threshold=1, reset=0.01)
    circuit.settle(probe=circuit.admit(), healthy=False)
    eventually(lambda: admitted(circuit))
    for healthy, still_open in ((False, True), (True, False)):
        probes: list[bool] = []

        def probe(probes: list[bool] = probes) -> bool:
            try:
                probes.append(circuit.admit())
            except CircuitOpen:
                return False
            return True

        eventually(probe)
        assert probes == [True]
        with pytest.raises(CircuitOpen):
            circuit.admit()
        circuit.settle(probe=True, healthy=healthy)
        assert circuit.open is still_open


async def test_an_origin_that_fails_is_left_alone_and_tried_again(
    ask: Ask, pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """After threshold failures nothing is sent; when the origin works again, the circuit closes by itself."""
    config = replace(config, circuit_threshold=3, circuit_reset=0.3, max_retries=0)
    for _ in range(3):
        assert (await ask(config, "GET", "/status?code=500&n=3")).status_code == 500
    sent = len(server.seen)
    with pytest.raises(CircuitOpen):
        await ask(config, "GET", "/echo")
    assert len(server.seen) == sent
    figures = pool.get_stats()["pools"][server.url]
    assert (figures["circuit"], figures["circuit_trips"]) == ("open", 1)
    await asyncio.sleep(0.3)
    assert (await ask(config, "GET", "/echo")).ok
    assert pool.get_stats()["pools"][server.url]["circuit"] == "closed"


async def test_health_names_the_origins_that_keep_failing(
    ask: Ask, pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer, free_port: int
) -> None:
    """health() says of an open circuit whose it is, for how long and why, and sends nothing to find out."""
    assert pool.health() == {"healthy": True, "reasons": [], "open_circuits": {}}
    config = replace(config, circuit_threshold=2, circuit_reset=60.0, max_retries=0)
    for _ in range(2):
        assert (await ask(config, "GET", "/status?code=503&key=canary")).status_code == 503
    health = pool.health()
    assert not health["healthy"]
    (reason,) = health["reasons"]
    assert re.fullmatch(rf"{server.url}: circuit open for \d+\.\d s, last failure: status 503", reason)
    assert reason == f"{server.url}: {health['open_circuits'][server.url]}"
    dead = HTTPConfig(f"http://127.0.0.1:{free_port}", circuit_threshold=1, max_retries=0)
    with pytest.raises(HTTPUnavailable):
        await ask(dead, "GET", "/")
    assert "Connect" in pool.health()["open_circuits"][dead.base_url]
    assert len(pool.health()["reasons"]) == 2
    assert "canary" not in str(pool.health())
    assert len(server.seen) == 2


async def test_health_returns_when_a_request_would_be_let_through(
    ask: Ask, pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """After circuit_reset the pool is healthy though the circuit is open, whose age a failed probe does not end."""
    config = replace(config, circuit_threshold=1, circuit_reset=0.2, max_retries=0)
    assert (await ask(config, "GET", "/status?code=500&n=2")).status_code == 500
    await eventually_async(lambda: pool.health()["healthy"])
    assert list(pool.health()["open_circuits"]) == [server.url]
    assert (await ask(config, "GET", "/status?code=500&n=2")).status_code == 500
    assert "open for 0.0 s" not in pool.health()["open_circuits"][server.url]
    await eventually_async(lambda: pool.health()["healthy"])
    assert (await ask(config, "GET", "/echo")).ok
    assert pool.health()["open_circuits"] == {}


async def test_a_deadline_is_the_last_failure(ask: Ask, pool: HTTPPool, config: HTTPConfig) -> None:
    """A circuit that opened because nothing came in time says so."""
    with pytest.raises(DeadlineExceeded):
        await ask(replace(config, circuit_threshold=1), "GET", "/hang", timeout=0.1)
    assert "deadline" in pool.health()["reasons"][0]


async def test_a_hanging_origin_opens_the_circuit(ask: Ask, config: HTTPConfig) -> None:
    """Deadlines that pass while the server is to answer count as failures."""
    config = replace(config, circuit_threshold=2)
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            await ask(config, "GET", "/hang", timeout=0.1)
    with pytest.raises(CircuitOpen):
        await ask(config, "GET", "/echo")


async def test_a_cancelled_probe_is_released(pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer) -> None:
    """A probe that is cancelled lets the next request be the probe."""
    config = replace(config, circuit_threshold=1, circuit_reset=0.05, max_retries=0)
    await pool.request_async(config, "GET", "/status?code=500")
    for _ in range(3):
        await asyncio.sleep(0.06)
        task = asyncio.create_task(pool.request_async(config, "GET", "/hang"))
        hanging = len(server.requests_to("/hang"))
        while len(server.requests_to("/hang")) == hanging:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await pool.request_async(config, "GET", "/echo")).ok


async def test_circuits_are_per_origin(ask: Ask, config: HTTPConfig, free_port: int) -> None:
    """One origin's circuit is none of another's."""
    dead = HTTPConfig(f"http://127.0.0.1:{free_port}", circuit_threshold=1, max_retries=0)
    with pytest.raises(HTTPUnavailable):
        await ask(dead, "GET", "/")
    with pytest.raises(CircuitOpen):
        await ask(dead, "GET", "/")
    assert (await ask(replace(config, circuit_threshold=1), "GET", "/echo")).ok
