"""Total deadlines: they hold whatever the server does, and end in DeadlineExceeded, never in an empty 200."""

import asyncio
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from app.pools.errors import ConfigError, DeadlineExceeded, HTTPUnavailable
from app.pools.http_pool import HTTPConfig, HTTPPool
from app.pools.http_pool.deadlines import Guard, Watchdog
from app.pools.http_pool.failures import NoThread
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import TLS, MisbehavingServer, misbehaving_server
from tests.support.threads import refuse_threads
from tests.support.waiting import eventually

SLOW_WAYS = ["/hang", "/trickle?what=headers", "/trickle?what=body"]


@pytest.mark.parametrize("path", SLOW_WAYS)
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_the_deadline_holds(ask: Ask, pool: HTTPPool, path: str, tls: bool) -> None:
    """A server that hangs or trickles headers or body is cut off at the deadline, and its connection is closed."""
    with misbehaving_server(tls=tls) as server:
        config = HTTPConfig(server.url, timeout=0.5, ca=TLS / "ca.pem")
        took = []
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded, match=r"did not end within 0\.5 s"):
                await ask(config, "GET", path)
            took.append(time.monotonic() - began)
        # A busy machine may delay one of them; the promise of 100 ms is about ours, not its scheduling.
        assert 0.5 <= min(took) < 0.6
        assert pool.get_stats()["pools"][server.url]["deadline_hits"] == 3
        assert pool.get_stats()["metrics"]["active_connections"] == 0
        await asyncio.to_thread(eventually, lambda: server.connected == 0)


async def test_the_deadline_includes_retries_and_their_pauses(ask: Ask, config: HTTPConfig) -> None:
    """However many retries are allowed, the call ends within its total time."""
    began = time.monotonic()
    answer = await ask(replace(config, max_retries=10_000, timeout=1.0), "GET", "/status?code=503")
    assert answer.status_code == 503
    assert time.monotonic() - began < 8


async def test_a_handshake_that_never_ends_is_cut_off(ask: Ask) -> None:
    """A server that accepts the connection and says nothing to the TLS handshake meets the connect timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = HTTPConfig(
            f"https://127.0.0.1:{silent.getsockname()[1]}", timeout=20.0, connect_timeout=0.2, max_retries=0
        )
        with pytest.raises(HTTPUnavailable):
            await ask(config, "GET", "/")
        with pytest.raises(DeadlineExceeded):
            await ask(replace(config, connect_timeout=10.0), "GET", "/", timeout=0.2)


def test_a_tls_handshake_that_trickles_is_cut_off(pool: HTTPPool) -> None:
    """The deadline holds while a server feeds the TLS handshake byte by byte, which no socket timeout notices."""
    stop = threading.Event()

    def feed(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            for byte in b"\x16\x03\x03\x40\x00" + bytes(400):
                if stop.wait(0.05):
                    break
                try:
                    peer.send(bytes([byte]))
                except OSError:
                    break

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        fed = threads.submit(feed, listener)
        config = HTTPConfig(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5, connect_timeout=20.0)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            pool.request(config, "GET", "/")
        assert time.monotonic() - began < 8
        stop.set()
        fed.result(10)


@pytest.mark.parametrize("timeout", [math.nan, "5", True])
async def test_a_timeout_that_is_no_number_is_refused(
    ask: Ask, pool: HTTPPool, config: HTTPConfig, timeout: Any
) -> None:
    """Requests, streams and sessions refuse it before anything is sent; NaN would be no deadline at all."""
    words = f"timeout={timeout!r} is not allowed; it must be a number of seconds, or None"
    with pytest.raises(ConfigError, match=words):
        await ask(config, "GET", "/", timeout=timeout)
    for name in ("timeout", "idle_timeout", "total_timeout"):
        options: dict[str, Any] = {name: timeout}
        with pytest.raises(ConfigError, match=f"^{name}={timeout!r}"):
            pool.stream(config, "GET", "/", **options)
    with pytest.raises(ConfigError, match=words), pool.session(config, timeout=timeout):
        pass
    assert pool.get_stats()["metrics"]["pool_misses"] == 0


def test_threads_with_different_deadlines_each_keep_their_own(pool: HTTPPool, config: HTTPConfig) -> None:
    """Among requests that hang, each ends at its own deadline; those that answer in time are left alone."""

    def ask(i: int) -> float:
        began = time.monotonic()
        if i % 2:
            assert pool.request(config, "GET", f"/slow?s=0.2&i={i}", timeout=20.0).ok
            return 0.0
        with pytest.raises(DeadlineExceeded):
            pool.request(config, "GET", "/hang", timeout=0.1 + i / 50)
        return time.monotonic() - began - (0.1 + i / 50)

    with ThreadPoolExecutor(20) as threads:
        delays = list(threads.map(ask, range(20)))
    assert min(delays) >= -0.01


def test_a_connection_given_back_is_never_shut_down(pool: HTTPPool, server: MisbehavingServer) -> None:
    """Requests that end close to their deadline succeed or raise DeadlineExceeded: no other ever pays for them."""
    # Without the circuit, which many that are late in a row, as on a busy machine, would open.
    config = HTTPConfig(server.url, max_retries=0, max_connections=4, circuit_threshold=0)
    outcomes = {"ok": 0, "late": 0}

    def ask(i: int) -> None:
        try:
            answer = pool.request(config, "GET", f"/slow?s=0.02&i={i}", timeout=0.015 + (i % 20) / 1000)
        except (DeadlineExceeded, TimeoutError):
            outcomes["late"] += 1
        else:
            assert answer.json()["target"].endswith(f"i={i}")
            outcomes["ok"] += 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(400)))
    assert sum(outcomes.values()) == 400
    assert pool.request(config, "GET", "/echo", timeout=20.0).ok


def test_a_guard_has_one_owner() -> None:
    """Between the request's end and its deadline exactly one wins: release says which."""
    watchdog = Watchdog()
    for _ in range(200):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            guard = Guard(time.monotonic() + 0.001)
            watchdog.watch(guard)
            guard.sock = ours
            time.sleep(0.0009)
            in_time = watchdog.release(guard)
            if in_time:
                assert not watchdog.release(guard)
                theirs.send(b"x")
                assert ours.recv(1) == b"x"
            else:
                theirs.settimeout(10)
                assert theirs.recv(1) == b""


def test_a_watchdog_that_could_not_start_starts_for_the_next_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure to start its thread, as at the system's limit, a later deadline is watched all the same."""
    watchdog = Watchdog()
    with monkeypatch.context() as patched:
        refuse_threads(patched, "poolwire-http-deadlines")
        with pytest.raises(NoThread, match="can't start"):
            watchdog.watch(Guard(time.monotonic()))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guard = Guard(time.monotonic() + 0.05)
        watchdog.watch(guard)
        guard.sock = ours
        theirs.settimeout(10)
        assert theirs.recv(1) == b""
    assert not watchdog.release(guard)
