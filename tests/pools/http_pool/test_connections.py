"""How many connections there are, how old they get, where they lead, and what becomes of them."""

import asyncio
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.pools.core.settings import HTTPPoolSettings
from app.pools.errors import BlockedAddress, PoolTimeout
from app.pools.http_pool import HTTPConfig, HTTPPool, addresses
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import TLS, MisbehavingServer, misbehaving_server
from tests.support.waiting import eventually, eventually_async

ROOT = Path(__file__).parents[3]


async def test_one_cap_for_threads_tasks_and_sessions(pool: HTTPPool, server: MisbehavingServer) -> None:
    """max_connections bounds all uses of an origin together, and each gets what another gave back."""
    config = HTTPConfig(server.url, max_connections=1, timeout=20.0)
    with pool.stream(config, "GET", "/events?n=1&then=hang"):
        with pytest.raises(PoolTimeout):
            await pool.request_async(config, "GET", "/echo", timeout=0.2)
        with pytest.raises(PoolTimeout) as caught:
            pool.session(config, timeout=0.05).__enter__()
    assert f"all 1 connections that threads, tasks and sessions at {server.url} together may have" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    for _ in range(3):
        assert (await pool.request_async(config, "GET", "/echo")).ok
        assert (await asyncio.to_thread(pool.request, config, "GET", "/echo")).ok
        with pool.session(config) as session:
            assert (await asyncio.to_thread(session.get, "/echo")).ok
    both = [pool.request_async(config, "GET", "/slow?s=0.01") for _ in range(10)]
    both += [asyncio.to_thread(pool.request, config, "GET", "/slow?s=0.01") for _ in range(10)]
    assert all(answer.ok for answer in await asyncio.gather(*both))


@pytest.mark.parametrize(
    ("own", "setting"), [(1, "max_connections of its HTTPConfig"), (None, "HTTP_POOL_MAX_CONNECTIONS")]
)
async def test_the_setting_that_gave_the_cap_is_named(own: int | None, setting: str, server: MisbehavingServer) -> None:
    """Who waits in vain for a connection reads which setting to raise, the configuration's or the pool's."""
    config = HTTPConfig(server.url, max_connections=own, max_retries=0)
    async with HTTPPool(HTTPPoolSettings(max_connections=1)) as pool:
        async with pool.stream(config, "GET", "/events?n=1&then=hang"):
            with pytest.raises(PoolTimeout, match=f"or raise {setting}$") as caught:
                pool.session(config, timeout=0.05).__enter__()
            assert setting == caught.value.setting
            with pytest.raises(PoolTimeout, match=f"or raise {setting}$"):
                await asyncio.to_thread(pool.request, config, "GET", "/echo", timeout=0.5)


async def test_a_connection_is_replaced_at_the_end_of_its_lifetime() -> None:
    """HTTP_POOL_MAX_LIFETIME ends connections however busy they are; 0 keeps them."""
    for lifetime, connections in ((0.05, 3), (0.0, 1)):
        with misbehaving_server() as each, HTTPPool(HTTPPoolSettings(max_lifetime=lifetime)) as pool:
            config = HTTPConfig(each.url)
            for _ in range(3):
                assert (await pool.request_async(config, "GET", "/slow?s=0.06")).ok
            assert each.accepted == connections
            for _ in range(3):
                assert (await asyncio.to_thread(pool.request, config, "GET", "/slow?s=0.06")).ok
            assert each.accepted == 2 * connections
            await pool.stop_async()


async def test_paused_requests_wait_up_to_their_deadline(
    ask: Ask, pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """While the pool is paused nothing is sent: requests wait for resume, or end at their deadline."""
    pool.pause()
    with pytest.raises(PoolTimeout, match=r"paused, 0 waiting\. Call resume\(\)"):
        await ask(config, "GET", "/echo", timeout=0.1)
    waiting = asyncio.create_task(ask(config, "GET", "/echo"))
    await eventually_async(lambda: pool.get_stats()["pools"][server.url]["queued"] == 1)
    assert server.seen == []
    pool.resume()
    assert (await waiting).ok


@pytest.fixture
def public_127_0_0_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have 127.0.0.2 count as a public address, for nothing beyond the machine is reachable in a test."""
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.2")


@pytest.mark.usefixtures("public_127_0_0_2")
async def test_a_name_that_changes_its_mind_reaches_nothing_private(
    ask: Ask, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With block_private a name that is public when looked up first and private afterwards (DNS rebinding) reaches
    nothing private: the address that is judged is the one that is dialled."""
    real, asked = socket.getaddrinfo, []

    def fickle(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host != "rebind.example":
            return real(host, port, *rest, **options)
        asked.append(host)
        address = "127.0.0.2" if len(asked) % 2 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", fickle)
    config = HTTPConfig(
        f"http://rebind.example:{server.port}", block_private=True, max_retries=3, retry_delay=0.001, timeout=20.0
    )
    for _ in range(3):
        with pytest.raises(Exception, match=r"ConnectionRefused|not a public|brought no response"):
            await ask(config, "GET", "/echo")
    assert asked
    assert server.seen == []
    assert server.accepted == 0


@pytest.mark.usefixtures("public_127_0_0_2")
async def test_a_redirect_into_the_private_network_is_blocked(ask: Ask, server: MisbehavingServer) -> None:
    """block_private holds for every hop: a public server cannot send us to a private one, by number or by name."""
    with misbehaving_server(host="127.0.0.2") as public:
        config = HTTPConfig(public.url, block_private=True)
        assert (await ask(config, "GET", "/echo")).ok
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"):
            with pytest.raises((BlockedAddress, ValueError)):
                await ask(config, "GET", "/redirect", params={"to": f"http://{host}:{server.port}/echo"})
    assert server.seen == []


def test_fifty_loops_leave_no_descriptor(pool: HTTPPool) -> None:
    """asyncio.run fifty times, over http and https: the connections of each loop end with it, without a warning."""
    with misbehaving_server() as plain, misbehaving_server(tls=True) as secure:
        configs = [HTTPConfig(plain.url), HTTPConfig(secure.url, ca=TLS / "ca.pem")]

        async def ask_all() -> None:
            answers = await asyncio.gather(*(pool.request_async(each, "GET", "/echo") for each in configs * 2))
            assert all(each.ok for each in answers)

        def descriptors() -> int:
            return len(os.listdir("/proc/self/fd"))

        for _ in range(3):
            asyncio.run(ask_all())
        before = descriptors()
        for _ in range(50):
            asyncio.run(ask_all())
        # The server's ends, in this process, close a moment later.
        eventually(lambda: descriptors() <= before + 16)
        assert [transport.tasks._sessions for transport in pool._transports.values()] == [{}, {}]


CANCELLED = """
import asyncio, contextlib, sys
from app.pools.http_pool import HTTPConfig, get_http_pool
config = HTTPConfig(sys.argv[1], ca=sys.argv[2])

async def main():
    pool = get_http_pool()
    await pool.request_async(config, "GET", "/echo")
    tasks = [asyncio.create_task(pool.request_async(config, "GET", "/hang")) for _ in range(5)]
    await asyncio.sleep(0.3)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[0]
    print("cancelled")

asyncio.run(main())
"""


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_cancelled_while_it_waits_for_headers_without_a_warning(tls: bool) -> None:
    """A program that cancels requests and ends at once reports no unclosed transport, over TLS either."""
    with misbehaving_server(tls=tls) as server:
        ran = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", CANCELLED, server.url, str(TLS / "ca.pem")],
            capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
        )  # fmt: skip
    assert [line for line in ran.stderr.splitlines() if not line.startswith("Executing <")] == []
    assert (ran.stdout, ran.returncode) == ("cancelled\n", 0)


@pytest.fixture
def downgrade() -> Iterator[tuple[MisbehavingServer, MisbehavingServer]]:
    """A server with TLS and one without."""
    with misbehaving_server(tls=True) as secure, misbehaving_server() as plain:
        yield secure, plain


async def test_a_redirect_from_https_to_http_carries_no_secret(
    ask: Ask, downgrade: tuple[MisbehavingServer, MisbehavingServer]
) -> None:
    """The same host over another scheme and port is another origin."""
    secure, plain = downgrade
    for auth in ("canary", ("user", "canary"), lambda: "canary"):
        config = HTTPConfig(
            secure.url, ca=TLS / "ca.pem", auth=auth, headers={"X-Api-Key": "canary", "Cookie": "canary"}
        )  # type: ignore[arg-type]
        assert (await ask(config, "GET", "/redirect", params={"to": f"{plain.url}/echo", "code": 308})).ok
    assert "canary" in str(secure.seen[0].headers)
    assert "canary" not in str([each.headers for each in plain.seen])


async def test_an_interrupted_probe_is_released(pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer) -> None:
    """A probe that ends in a KeyboardInterrupt, or in the caller's own error, lets the next request be the probe."""
    config = replace(config, circuit_threshold=1, circuit_reset=0.01, max_retries=0)
    pool.request(config, "GET", "/status?code=500")
    for kind in (KeyboardInterrupt, SystemExit, RuntimeError):

        def body(kind: type[BaseException] = kind) -> Iterator[bytes]:
            yield b"x"
            raise kind

        await asyncio.sleep(0.02)
        with pytest.raises(kind):
            pool.request(config, "PUT", "/echo", data=body())
    await asyncio.sleep(0.02)
    assert pool.request(config, "GET", "/echo").ok
    assert pool.get_stats()["pools"][server.url]["circuit"] == "closed"
