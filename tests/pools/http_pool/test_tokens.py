"""Credentials: basic, bearer, and functions that fetch tokens."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.pools.errors import ConfigError
from app.pools.http_pool import HTTPConfig, HTTPPool
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import MisbehavingServer


@pytest.mark.parametrize(
    ("auth", "sent"),
    [
        (None, None), (("alice", "pw"), "Basic YWxpY2U6cHc="), ("t0ken", "Bearer t0ken"), ("Key t0ken", "Key t0ken"),
        (lambda: "t0ken", "Bearer t0ken"),
    ],
)  # fmt: skip
async def test_credentials_are_sent(ask: Ask, server: MisbehavingServer, auth: object, sent: str | None) -> None:
    """A tuple is sent as Basic, a token as Bearer unless it names its scheme, and a function's token likewise."""
    answer = await ask(HTTPConfig(server.url, auth=auth), "GET", "/echo")  # type: ignore[arg-type]
    assert answer.json()["headers"].get("authorization") == sent


async def test_a_header_of_the_request_takes_precedence(ask: Ask, server: MisbehavingServer) -> None:
    """An Authorization header given with the request replaces the configuration's, in any case."""
    for auth in ("t0ken", lambda: "t0ken"):
        config = HTTPConfig(server.url, auth=auth, headers={"X-A": "1"})
        said = (await ask(config, "GET", "/echo", headers={"authorization": "Mine", "x-a": "2"})).json()["headers"]
        assert (said["authorization"], said["x-a"]) == ("Mine", "2")


def test_one_fetch_serves_all_threads(pool: HTTPPool, server: MisbehavingServer) -> None:
    """However many threads need the token at once, the function is called once."""
    calls = []

    def fetch() -> str:
        calls.append(threading.get_ident())
        time.sleep(0.1)
        return "right"

    config = HTTPConfig(server.url, auth=fetch)
    with ThreadPoolExecutor(32) as threads:
        codes = list(threads.map(lambda _: pool.request(config, "GET", "/token?right=right").status_code, range(64)))
    assert codes == [200] * 64
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_an_expired_token_is_fetched_once_for_all(pool: HTTPPool, server: MisbehavingServer, kind: str) -> None:
    """When the server refuses a token, one refresh serves every task that used it, and each request succeeds."""
    calls = []

    def plain() -> str:
        calls.append(1)
        time.sleep(0.05)
        return f"token{len(calls)}"

    async def asynchronous() -> str:
        calls.append(1)
        await asyncio.sleep(0.05)
        return f"token{len(calls)}"

    config = HTTPConfig(server.url, auth=plain if kind == "plain" else asynchronous)
    for right in ("token1", "token2"):
        answers = await asyncio.gather(
            *(pool.request_async(config, "POST", f"/token?right={right}", json={}) for _ in range(100))
        )
        assert [answer.status_code for answer in answers] == [200] * 100
    assert len(calls) == 2


async def test_a_401_is_retried_once(ask: Ask, server: MisbehavingServer) -> None:
    """A second 401 with a new token is returned; a fixed token is not tried again."""
    answer = await ask(HTTPConfig(server.url, auth=lambda: "wrong"), "GET", "/token?right=x")
    assert (answer.status_code, len(server.seen)) == (401, 2)
    answer = await ask(HTTPConfig(server.url, auth="wrong"), "GET", "/token?right=x")
    assert (answer.status_code, len(server.seen)) == (401, 3)


async def test_what_the_function_raises_reaches_the_caller(ask: Ask, server: MisbehavingServer) -> None:
    """An error of the function is the caller's, the next call tries again, and nothing is sent without a token."""

    def fetch() -> str:
        raise LookupError("no token today")

    for _ in range(2):
        with pytest.raises(LookupError, match="no token today"):
            await ask(HTTPConfig(server.url, auth=fetch), "GET", "/echo")
    with pytest.raises(ConfigError, match="must return a token"):
        await ask(HTTPConfig(server.url, auth=lambda: None), "GET", "/echo")  # type: ignore[arg-type,return-value]
    assert server.seen == []


def test_a_coroutine_function_needs_request_async(pool: HTTPPool, server: MisbehavingServer) -> None:
    """A synchronous request with an asynchronous function says what to do."""

    async def fetch() -> str:
        return "t"

    with pytest.raises(ConfigError, match="request_async"):
        pool.request(HTTPConfig(server.url, auth=fetch), "GET", "/echo")


@pytest.mark.parametrize("many", [1, 3])
def test_sixty_four_threads_renew_a_token_once(pool: HTTPPool, server: MisbehavingServer, many: int) -> None:
    """64 threads whose token expires at once make one refresh, and every request succeeds at its second attempt."""
    calls: list[int] = []

    def fetch() -> str:
        calls.append(1)
        time.sleep(0.02)  # a refresh takes a while, in which the other threads come and must not begin one
        return f"token{len(calls)}"

    config = HTTPConfig(server.url, auth=fetch)
    with ThreadPoolExecutor(64) as threads:
        for right in range(1, many + 2):
            path = f"/token?right=token{right}"
            codes = list(threads.map(lambda _, path=path: pool.request(config, "POST", path).status_code, range(64)))  # type: ignore[misc]
            assert codes == [200] * 64
            assert len(calls) == right
