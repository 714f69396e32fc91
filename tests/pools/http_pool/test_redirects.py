"""Redirects: methods, bodies, limits, and what another origin gets to see."""

from dataclasses import replace

import pytest

from app.pools.errors import BlockedAddress, InvalidURL, TooManyRedirects
from app.pools.http_pool import HTTPConfig, HTTPPool
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import MisbehavingServer, misbehaving_server


@pytest.mark.parametrize(
    ("method", "code", "becomes", "keeps_body"),
    [
        ("GET", 301, "GET", True), ("GET", 302, "GET", True), ("GET", 303, "GET", True), ("GET", 307, "GET", True),
        ("POST", 301, "GET", False), ("POST", 302, "GET", False), ("POST", 303, "GET", False),
        ("POST", 307, "POST", True), ("POST", 308, "POST", True), ("PUT", 302, "PUT", True), ("PUT", 303, "GET", False),
        ("DELETE", 301, "DELETE", True),
    ],
)  # fmt: skip
async def test_methods_follow_the_rules(
    ask: Ask, config: HTTPConfig, server: MisbehavingServer, method: str, code: int, becomes: str, keeps_body: bool
) -> None:
    """303 becomes GET, 301 and 302 turn POST into GET, 307 and 308 repeat the request with its body."""
    body = None if method == "GET" else b"payload"
    answer = await ask(config, method, "/redirect", params={"code": code, "to": "/echo?x=1"}, data=body)
    said = answer.json()
    assert (said["method"], said["target"]) == (becomes, "/echo?x=1")
    assert said["body"] == ("payload" if keeps_body and body else "")
    assert ("content-type" in said["headers"]) is False
    assert answer.url == f"{server.url}/echo?x=1"
    assert answer.retries == 0


async def test_relative_locations_are_resolved(ask: Ask, server: MisbehavingServer) -> None:
    """A relative location is relative to the URL that redirected."""
    answer = await ask(HTTPConfig(server.url), "GET", "/redirect", params={"to": "deeper/echo"})
    assert answer.json()["target"] == "/deeper/echo"


SECRETS = {"Authorization": "canary-a", "Cookie": "canary=c", "X-Api-Key": "canary-x", "X-Whatever": "canary-w"}


@pytest.mark.parametrize("given", ["configuration", "request"])
async def test_another_origin_sees_no_secret(
    ask: Ask, config: HTTPConfig, server: MisbehavingServer, given: str
) -> None:
    """Across origins Authorization, Cookie, X-Api-Key and every other header of our own is dropped, for good."""
    with misbehaving_server() as other:
        back = f"{other.url}/redirect?to={server.url}/echo"
        options = {"headers": SECRETS} if given == "request" else {}
        configured = replace(config, headers=SECRETS) if given == "configuration" else config
        answer = await ask(configured, "GET", "/redirect", params={"to": back}, **options)
        seen = other.seen[-1].headers
        assert "canary" in str(server.seen[0].headers)
        assert "canary" not in str(seen)
        assert "canary" not in answer.text
        assert seen["host"] == other.url.removeprefix("http://")


async def test_basic_and_fetched_credentials_are_dropped_too(ask: Ask, config: HTTPConfig) -> None:
    """Neither a password nor a function's token crosses to another origin, not even after a 401."""
    with misbehaving_server() as other:
        for auth in (("alice", "pw"), lambda: "t0ken"):
            target = f"{other.url}/token?right=t0ken"
            answer = await ask(replace(config, auth=auth), "GET", "/redirect", params={"to": target})  # type: ignore[arg-type]
            assert answer.status_code == 401
        assert all("authorization" not in each.headers for each in other.seen)
        assert len(other.seen) == 2


async def test_circles_end(ask: Ask, config: HTTPConfig, server: MisbehavingServer, pool: HTTPPool) -> None:
    """A redirect loop ends after max_redirects with TooManyRedirects, and leaves nothing checked out."""
    with pytest.raises(TooManyRedirects, match="more than 3 times"):
        await ask(replace(config, max_redirects=3), "GET", "/loop")
    assert len(server.seen) == 4
    assert pool.get_stats()["metrics"]["active_connections"] == 0


async def test_redirects_can_be_left_to_the_caller(ask: Ask, config: HTTPConfig) -> None:
    """max_redirects=0 returns the redirect itself."""
    answer = await ask(replace(config, max_redirects=0), "GET", "/loop")
    assert (answer.status_code, answer.headers["location"]) == (302, "/loop")


@pytest.mark.parametrize("location", ["ftp://host/x", "file:///etc/passwd", "http://host:x/"])
async def test_a_location_that_is_no_web_address_is_refused(ask: Ask, config: HTTPConfig, location: str) -> None:
    """A redirect to anything but http(s) is an error."""
    with pytest.raises(InvalidURL, match="redirects to"):
        await ask(config, "GET", "/redirect", params={"to": location})


async def test_private_addresses_are_blocked(ask: Ask, config: HTTPConfig) -> None:
    """block_private refuses a private address by name and number; a host spelled as a number is refused as it is."""
    guarded = replace(config, block_private=True)
    port = config.base_url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        with pytest.raises(BlockedAddress, match="is not a public address"):
            await ask(replace(guarded, base_url=f"http://{host}:{port}"), "GET", "/echo")
    for disguise in ("2130706433", "0x7f.1", "017700000001", "127.1"):
        with pytest.raises(InvalidURL, match="has a number for a host"):
            HTTPConfig(f"http://{disguise}:{port}", block_private=True)
