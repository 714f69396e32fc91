"""Tenants: callers of one origin share connections, and nothing that tells who they are."""

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from app.pools.errors import ConfigError, PoolError, UntrustedServer
from app.pools.http_pool import HTTPConfig, HTTPPool
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import TLS, MisbehavingServer, misbehaving_server


async def test_no_tenant_sends_anothers_credentials(ask: Ask, server: MisbehavingServer) -> None:
    """Calls of many tenants at once over the same connections each carry their own credentials and headers."""
    tenants = [HTTPConfig(server.url, auth=f"token-{i}", headers={"X-Tenant": str(i)}) for i in range(20)]
    answers = await asyncio.gather(
        *(ask(tenant, "GET", f"/slow?s=0.001&i={i}") for i, tenant in enumerate(tenants * 5))
    )
    for i, answer in enumerate(answers):
        sent = answer.json()["headers"]
        assert (sent["authorization"], sent["x-tenant"]) == (f"Bearer token-{i % 20}", str(i % 20))


async def test_tenants_share_connections(ask: Ask, server: MisbehavingServer) -> None:
    """Tenants of one origin with the same limits use the same connection, one after another."""
    for name in ("alice", "bob", "carol"):
        assert (await ask(HTTPConfig(server.url, auth=name), "GET", "/echo")).ok
    assert server.accepted == 1


async def test_cookies_are_not_kept(ask: Ask, config: HTTPConfig) -> None:
    """A cookie that the server sets is sent to nobody."""
    await ask(replace(config, auth="alice"), "GET", "/cookie?who=alice")
    for tenant in (config, replace(config, auth="alice"), replace(config, auth="bob")):
        assert "cookie" not in (await ask(tenant, "GET", "/echo")).json()["headers"]


async def test_trust_separates_connections(ask: Ask, pool: HTTPPool) -> None:
    """Who verifies never gets a connection that was opened without verification."""
    with misbehaving_server(tls=True) as server:
        assert (await ask(HTTPConfig(server.url, verify=False), "GET", "/echo")).ok
        with pytest.raises(UntrustedServer, match="certificate verify failed") as caught:
            await ask(HTTPConfig(server.url), "GET", "/echo")
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        assert len(server.seen) == 1
        assert (await ask(HTTPConfig(server.url, ca=TLS / "ca.pem"), "GET", "/echo")).ok
    with misbehaving_server(tls=True, host="127.0.0.2") as impostor, pytest.raises(UntrustedServer):
        await ask(HTTPConfig(impostor.url, ca=TLS / "ca.pem"), "GET", "/echo")


async def test_client_certificates_are_shown_to_their_origin_only(ask: Ask) -> None:
    """A server that demands a certificate is served by who has one, and a redirect takes it nowhere else."""
    with misbehaving_server(tls=True, client_certificate=True) as server:
        config = HTTPConfig(server.url, ca=TLS / "ca.pem", cert=TLS / "client.pem", max_retries=0)
        assert (await ask(config, "GET", "/echo")).ok
        with pytest.raises(PoolError):
            await ask(replace(config, cert=None), "GET", "/echo")
        with misbehaving_server(tls=True, client_certificate=True) as other:
            with pytest.raises(PoolError):
                await ask(config, "GET", "/redirect", params={"to": f"{other.url}/echo"})
            assert other.seen == []


async def test_the_environment_counts_only_if_asked_for(
    ask: Ask, config: HTTPConfig, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY is ignored by default; with trust_env requests go through it."""
    with misbehaving_server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        assert (await ask(config, "GET", "/echo")).json()["target"] == "/echo"
        through = await ask(replace(config, trust_env=True), "GET", "/echo")
        assert through.json()["target"] == f"{server.url}/echo"
        assert len(proxy.seen) == 1


async def test_the_environment_does_not_decide_on_trust(
    ask: Ask, pool: HTTPPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUESTS_CA_BUNDLE overrides neither verify nor ca; with trust_env it is the authority."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(TLS / "ca.pem"))
    with misbehaving_server(tls=True) as server:
        with pytest.raises(UntrustedServer):
            await ask(HTTPConfig(server.url), "GET", "/echo")
        assert (await ask(HTTPConfig(server.url, trust_env=True), "GET", "/echo")).ok
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
        assert (await ask(HTTPConfig(server.url, verify=False), "GET", "/echo")).ok
        with pool.session(HTTPConfig(server.url, ca=TLS / "ca.pem")) as session:
            assert session.get("/echo").ok
        with pytest.raises(ConfigError, match="/nowhere"):
            await ask(HTTPConfig(server.url, trust_env=True, timeout=5.0), "GET", "/echo")


async def test_a_proxy_gets_its_credentials_and_the_origin_does_not(ask: Ask, config: HTTPConfig) -> None:
    """A proxy's credentials are sent to it."""
    with misbehaving_server() as proxy:
        config = replace(config, proxy=proxy.url.replace("//", "//alice:p%40w@"))
        said = (await ask(config, "GET", "/echo?x=1")).json()
    assert said["target"] == f"{config.base_url}/echo?x=1"
    assert said["headers"]["proxy-authorization"] == "Basic YWxpY2U6cEB3"


async def test_https_is_tunnelled_through_a_proxy(ask: Ask, pool: HTTPPool) -> None:
    """Through a proxy https is verified end to end, its connection is reused, and the proxy sees no request."""
    with misbehaving_server(tls=True) as server, misbehaving_server() as proxy:
        config = HTTPConfig(
            server.url, ca=TLS / "ca.pem", auth="t0ken", proxy=proxy.url.replace("//", "//alice:pw@"), max_retries=0
        )
        for _ in range(3):
            assert (await ask(config, "GET", "/echo")).json()["headers"]["authorization"] == "Bearer t0ken"
        assert [each.method for each in proxy.seen] == ["CONNECT"]
        assert proxy.seen[0].headers["proxy-authorization"] == "Basic YWxpY2U6cHc="
        assert "proxy-authorization" not in server.seen[0].headers
        with pytest.raises(UntrustedServer):
            await ask(replace(config, ca=None), "GET", "/echo")
        with pool.session(config) as session:
            assert session.get("/echo").ok


def test_statistics_of_an_origin_add_up(pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer) -> None:
    """get_stats has the documented figures of each origin, and they are true."""
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: pool.request(config, "GET", f"/echo?i={i}"), range(40)))
    asyncio.run(_ask_async(pool, config))
    pool.request(config, "GET", "/status?code=404")
    pool.request(config, "GET", "/status?code=503&n=1&key=b")
    stats = pool.get_stats()
    figures = stats["pools"][server.url]
    assert (figures["requests"], figures["attempts"], figures["retries"]) == (52, 53, 1)
    assert figures["statuses"] == {"2xx": 51, "4xx": 1}
    assert (figures["failures"], figures["deadline_hits"], figures["refused_retries"]) == (0, 0, 0)
    assert (figures["in_flight"], figures["queued"], figures["active"]) == (0, 0, 0)
    assert figures["new_connections"] == server.accepted == figures["misses"]
    assert figures["reuse_ratio"] == pytest.approx(1 - server.accepted / 53)
    assert figures["latency"]["count"] == 52
    assert 0 < figures["latency"]["p50"] <= figures["latency"]["p95"] <= figures["latency"]["p99"]
    assert figures["bytes_received"] > 50 * 100
    assert stats["metrics"]["pool_hits"] == 53 - server.accepted
    assert stats["cleanup_thread_alive"]


async def _ask_async(pool: HTTPPool, config: HTTPConfig) -> None:
    await asyncio.gather(*(pool.request_async(config, "GET", "/echo") for _ in range(10)))
