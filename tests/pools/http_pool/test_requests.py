"""Requests that go well: what is sent, what comes back, and over which connection."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.pools.core.settings import HTTPPoolSettings
from app.pools.errors import ConfigError, PoolClosed
from app.pools.http_pool import HTTPClient, HTTPConfig, HTTPPool, get_http_pool
from tests.support.misbehaving import MisbehavingServer, misbehaving_server
from tests.support.waiting import eventually, eventually_async

EXAMPLE = """
from app.pools.http_pool import get_http_pool, HTTPConfig
pool = get_http_pool()
config = HTTPConfig(base_url="https://api.example.com", timeout=30.0, max_retries=3)
response = await pool.request_async(config, "GET", "/data", params={"limit": 100})
print(f"Status: {response.status_code}, Data: {response.json_data}")
"""


async def test_the_origins_example_works_as_written(
    server: MisbehavingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The origin's example, run in a coroutine against a local server, prints the status and the parsed body."""
    body = EXAMPLE.replace("https://api.example.com", server.url).replace("\n", "\n    ")
    namespace: dict[str, object] = {}
    exec(f"async def example():{body}", namespace)
    await namespace["example"]()  # type: ignore[operator]
    await get_http_pool().stop_async()
    assert "Status: 200, Data: {'method': 'GET', 'target': '/data?limit=100'" in capsys.readouterr().out


def test_a_request_returns_status_headers_and_body(pool: HTTPPool, config: HTTPConfig) -> None:
    """request sends the method, path, query, headers and JSON body, and returns all of the response."""
    response = pool.request(
        config, "post", "/echo", params={"q": ["a b", "c"], "none": None}, headers={"X-Id": "7"}, json={"n": None}
    )
    said = response.json()
    assert (response.status_code, response.ok, response.retries) == (200, True, 0)
    assert (said["method"], said["target"], said["body"]) == ("POST", "/echo?q=a+b&q=c", '{"n":null}')
    assert (said["headers"]["x-id"], said["headers"]["content-type"]) == ("7", "application/json")
    assert response.headers["CONTENT-type"] == "application/json"
    assert response.json_data == said == json.loads(response.text)
    assert 0 < response.request_time < 10


async def test_request_async_sends_and_returns_the_same(pool: HTTPPool, config: HTTPConfig) -> None:
    """request_async does what request does."""
    options = {"params": {"q": "ü/?", "x": 1}, "headers": {"X-Id": "7"}, "data": {"a": "1 2"}}
    one = pool.request(config, "PUT", "/echo", **options)  # type: ignore[arg-type]
    other = await pool.request_async(config, "PUT", "/echo", **options)  # type: ignore[arg-type]
    assert one.json() == other.json()
    assert dict(one.headers) == dict(other.headers)
    assert one.url == other.url
    await pool.stop_async()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"])
async def test_a_client_has_every_method_twice(pool: HTTPPool, config: HTTPConfig, method: str) -> None:
    """HTTPClient's methods send the method that they are named after."""
    client = HTTPClient(pool, config)
    for response in (
        getattr(client, method.lower())("/echo"),
        await getattr(client, f"{method.lower()}_async")("/echo"),
        client.request(method, "/echo"),
        await client.request_async(method, "/echo"),
    ):
        assert response.status_code == 200
        if method == "HEAD":
            assert response.content == b""
        else:
            assert response.json()["method"] == method
    await pool.stop_async()


def test_one_connection_serves_requests_one_after_another(
    pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """A hundred requests in a row open one connection."""
    for _ in range(100):
        pool.request(config, "GET", "/echo")
    figures = pool.get_stats()["pools"][server.url]
    assert server.accepted == 1
    assert (figures["requests"], figures["new_connections"], figures["reuse_ratio"]) == (100, 1, 0.99)
    assert pool.get_stats()["metrics"]["pool_hits"] == 99


async def test_one_connection_serves_tasks_one_after_another(
    pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """A hundred asynchronous requests in a row open one connection."""
    for _ in range(100):
        await pool.request_async(config, "GET", "/echo")
    assert server.accepted == 1
    assert pool.get_stats()["pools"][server.url]["new_connections"] == 1
    await pool.stop_async()


def test_threads_get_their_own_answers(pool: HTTPPool, config: HTTPConfig) -> None:
    """64 threads at once each get the answer to their own question, over at most 64 connections."""
    with ThreadPoolExecutor(64) as threads:
        answers = list(threads.map(lambda i: pool.request(config, "GET", f"/echo?i={i}").json()["target"], range(640)))
    assert answers == [f"/echo?i={i}" for i in range(640)]
    assert pool.get_stats()["metrics"]["active_connections"] == 0


async def test_tasks_get_their_own_answers(pool: HTTPPool, config: HTTPConfig) -> None:
    """500 tasks at once each get the answer to their own question, over at most max_connections connections."""
    responses = await asyncio.gather(*(pool.request_async(config, "GET", f"/echo?i={i}") for i in range(500)))
    assert [r.json()["target"] for r in responses] == [f"/echo?i={i}" for i in range(500)]
    assert pool.get_stats()["metrics"]["total_connections"] <= 100
    assert pool.get_stats()["metrics"]["active_connections"] == 0
    await pool.stop_async()


def test_every_loop_has_its_own_connections(pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer) -> None:
    """One pool serves several loops, one after another and in several threads at once; each closes its own."""

    async def ask() -> int:
        return (await pool.request_async(config, "GET", "/echo")).status_code

    assert [asyncio.run(ask()) for _ in range(3)] == [200, 200, 200]
    assert [transport.tasks._sessions for transport in pool._transports.values()] == [{}]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: asyncio.run(ask()), range(8))) == [200] * 8
    eventually(lambda: server.connected == 0)


async def test_a_stopped_pool_closes_its_connections(config: HTTPConfig, server: MisbehavingServer) -> None:
    """stop_async closes synchronous and asynchronous connections, and the pool refuses from then on."""
    pool = HTTPPool()
    pool.request(config, "GET", "/echo")
    await pool.request_async(config, "GET", "/echo")
    assert server.connected == 2
    await pool.stop_async()
    await eventually_async(lambda: server.connected == 0)
    with pytest.raises(PoolClosed):
        pool.request(config, "GET", "/echo")
    with pytest.raises(PoolClosed):
        await pool.request_async(config, "GET", "/echo")


async def test_stop_within_the_loop_closes_its_sessions(config: HTTPConfig, server: MisbehavingServer) -> None:
    """A plain stop() called in a coroutine closes this loop's connections as soon as the loop goes on."""
    pool = HTTPPool()
    await pool.request_async(config, "GET", "/echo")
    pool.stop()
    await eventually_async(lambda: server.connected == 0)


def test_the_least_recently_used_transport_makes_room(server: MisbehavingServer) -> None:
    """HTTP_POOL_MAX_SESSIONS bounds the transports: the least recently used one is closed for a new one."""
    with (
        misbehaving_server() as second,
        misbehaving_server() as third,
        HTTPPool(HTTPPoolSettings(max_sessions=2)) as pool,
    ):
        for each in (server, second, server, third):
            pool.request(HTTPConfig(each.url), "GET", "/echo")
        eventually(lambda: second.connected == 0)
        assert (server.connected, third.connected) == (1, 1)
        assert pool.request(HTTPConfig(second.url), "GET", "/echo").ok


def test_an_evicted_transport_finishes_what_it_serves(server: MisbehavingServer) -> None:
    """A request in flight on a transport that makes room for another ends as if nothing happened."""
    with misbehaving_server() as second, HTTPPool(HTTPPoolSettings(max_sessions=1)) as pool:
        answers: list[int] = []
        slow = threading.Thread(
            target=lambda: answers.append(pool.request(HTTPConfig(server.url), "GET", "/slow?s=0.5").status_code)
        )
        slow.start()
        eventually(lambda: server.requests_to("/slow"))
        assert pool.request(HTTPConfig(second.url), "GET", "/echo").ok
        slow.join(20)
        assert answers == [200]
        eventually(lambda: server.connected == 0)


def test_making_room_kills_nothing(server: MisbehavingServer) -> None:
    """With room for one transport and three origins in use, streams, sessions, threads and tasks all end well."""
    with (
        misbehaving_server() as second,
        misbehaving_server() as third,
        HTTPPool(HTTPPoolSettings(max_sessions=1)) as pool,
    ):
        configs = [HTTPConfig(each.url, max_retries=0) for each in (server, second, third)]

        def work(i: int) -> None:
            config = configs[i % 3]
            for j in range(5):
                assert pool.request(config, "GET", f"/slow?s=0.002&i={i}-{j}").ok
                with pool.stream(config, "GET", "/events?n=3&every=0.002") as response:
                    assert response.read().count(b"token") == 3
                with pool.session(config) as session:
                    assert session.get("/slow?s=0.002").ok

        async def tasks(i: int) -> None:
            for _ in range(5):
                answers = await asyncio.gather(*(pool.request_async(each, "GET", "/slow?s=0.002") for each in configs))
                assert all(answer.ok for answer in answers)

        with ThreadPoolExecutor(8) as threads:
            running = [threads.submit(work, i) for i in range(6)]
            running += [threads.submit(lambda i=i: asyncio.run(tasks(i))) for i in range(2)]
            for each in running:
                each.result(60)
        assert pool.get_stats()["metrics"]["active_connections"] == 0
        assert len(pool._transports) == 1


def test_an_idle_transport_is_closed(server: MisbehavingServer) -> None:
    """HTTP_POOL_SESSION_TIMEOUT closes a transport that nobody used for as long."""
    with HTTPPool(HTTPPoolSettings(session_timeout=0.1, health_check_interval=0.05)) as pool:
        pool.request(HTTPConfig(server.url), "GET", "/echo")
        eventually(lambda: server.connected == 0)
        assert pool.request(HTTPConfig(server.url), "GET", "/echo").ok


def test_the_environment_sets_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_POOL_MAX_SESSIONS and HTTP_POOL_SESSION_TIMEOUT take effect; a bad value names its variable."""
    monkeypatch.setenv("HTTP_POOL_MAX_SESSIONS", "3")
    monkeypatch.setenv("HTTP_POOL_SESSION_TIMEOUT", "7.5")
    settings = HTTPPool().settings
    assert (settings.max_sessions, settings.session_timeout) == (3, 7.5)
    monkeypatch.setenv("HTTP_POOL_MAX_SESSIONS", "none")
    with pytest.raises(ConfigError, match="HTTP_POOL_MAX_SESSIONS"):
        HTTPPool()
