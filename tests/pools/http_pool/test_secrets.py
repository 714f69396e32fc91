"""A secret in any kind of credential shows nowhere, whatever fails."""

import asyncio
import logging
import traceback
from collections.abc import Iterator

import pytest
import requests

from app.pools.errors import ConfigError, PoolError
from app.pools.http_pool import HTTPClient, HTTPConfig, HTTPPool
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import TLS, MisbehavingServer, misbehaving_server

CANARY = "canary5ecret"


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All that is logged, at the lowest level."""
    with caplog.at_level(logging.DEBUG):
        yield caplog


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error with everything it was caused by or came up during."""
    while error is not None:
        yield error
        if error.__context__ is not None and error.__context__ is not error.__cause__:
            yield from chain(error.__context__)
        error = error.__cause__


def secrets(base_url: str, way: str) -> HTTPConfig:
    """A configuration with the canary in one kind of credential."""
    return HTTPConfig(
        base_url,
        max_retries=1,
        retry_delay=0.001,
        timeout=0.5,
        max_response_size=100_000,
        max_redirects=1,
        circuit_threshold=0,
        auth={
            "basic": ("user", CANARY), "bearer": CANARY, "function": lambda: CANARY,
        }.get(way),
        headers={"X-Api-Key": CANARY, "Cookie": f"session={CANARY}", "X-Plain": CANARY} if way == "headers" else {},
    )  # fmt: skip


@pytest.mark.parametrize("way", ["basic", "bearer", "function", "headers", "query", "body"])
@pytest.mark.parametrize(
    "path",
    ["/hang", "/reset", "/cut?when=headers", "/cut?when=body", "/endless", "/loop", "/redirect?to=ftp://x", "//evil",
     "/status?code=404", "/bomb?mb=9", "refused", "untrusted"],
)  # fmt: skip
async def test_a_canary_shows_nowhere(
    ask: Ask, pool: HTTPPool, server: MisbehavingServer, way: str, path: str, free_port: int,
    everything_logged: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A secret in any kind of credential is in no error, chain, log, representation or statistic, whatever fails."""
    base_url = {"refused": f"http://127.0.0.1:{free_port}"}.get(path, server.url)
    with misbehaving_server(tls=True) as secure:
        config = secrets(secure.url if path == "untrusted" else base_url, way)
        options = (
            {"params": {"api_key": CANARY}} if way == "query" else {"json": {"k": CANARY}} if way == "body" else {}
        )
        with pytest.raises(PoolError) as caught:
            (await ask(config, "PUT", path, **options)).raise_for_status()  # type: ignore[arg-type]
    for error in chain(caught.value):
        assert CANARY not in f"{error!s} {error!r} {error.args}"
        assert all(CANARY not in repr(value) for value in vars(error).values())
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    # aiohttp and urllib3 are silent about headers; what asyncio or a client logs would show here as well.
    assert CANARY not in everything_logged.text
    shown = [config, HTTPClient(pool, config), pool, pool.get_stats(), pool.health(), *pool._accounts.values()]
    assert CANARY not in repr(shown)


def shown(error: BaseException) -> str:
    """Everything that a program may print of an error."""
    each = [f"{one!s} {one!r} {one.args} {[repr(value) for value in vars(one).values()]}" for one in chain(error)]
    return "".join([*each, *traceback.format_exception(error)])


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("path", ["/status?code=404", "/reset", "/hang", "refused"])
async def test_a_proxys_credentials_show_nowhere(
    ask: Ask, pool: HTTPPool, scheme: str, path: str, free_port: int, everything_logged: pytest.LogCaptureFixture
) -> None:
    """The user and password of a proxy are in no error, log, representation or statistic when proxy or origin fail."""
    with misbehaving_server(tls=scheme == "https") as server, misbehaving_server() as proxy:
        port, target = (free_port, "/") if path == "refused" else (proxy.port, path)
        config = HTTPConfig(
            server.url, proxy=f"http://user:{CANARY}@127.0.0.1:{port}", ca=TLS / "ca.pem", timeout=1.0, max_retries=0
        )
        with pytest.raises(PoolError) as caught:
            (await ask(config, "GET", target)).raise_for_status()
        with pool.session(config) as session, pytest.raises(requests.RequestException) as leased:
            (await asyncio.to_thread(session.get, target, timeout=0.5)).raise_for_status()
    assert CANARY not in shown(caught.value) + str(leased.value) + everything_logged.text
    assert CANARY not in repr([config, pool, pool.get_stats(), *pool._accounts, *pool._transports])


@pytest.mark.parametrize("path", ["/reset", "/hang", "/loop", "/bomb?mb=9", "/status?code=404", "/endless"])
@pytest.mark.parametrize("way", ["basic", "bearer", "function", "headers"])
def test_a_sessions_credentials_show_in_no_message_or_log(
    pool: HTTPPool, server: MisbehavingServer, way: str, path: str, everything_logged: pytest.LogCaptureFixture
) -> None:
    """What a leased session raises and what is logged meanwhile hold no secret."""
    config = secrets(server.url, way)
    with pool.session(config) as session, pytest.raises(requests.RequestException) as caught:
        session.put(path, timeout=0.3).raise_for_status()
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + everything_logged.text
    assert CANARY not in repr([session, pool.get_stats()])


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(
    "path", ["/echo", "/reset", "/hang", "/cut?when=headers", "/endless", "/redirect?to=/hang", "refused"]
)
def test_a_sessions_query_shows_in_no_message_or_log(
    pool: HTTPPool, path: str, tls: bool, free_port: int, everything_logged: pytest.LogCaptureFixture
) -> None:
    """A secret in the query of a leased session's request is sent, and is in no error and no library's log."""
    with misbehaving_server(tls=tls) as server:
        refused = f"{'https' if tls else 'http'}://127.0.0.1:{free_port}"
        config = HTTPConfig(
            refused if path == "refused" else server.url,
            ca=TLS / "ca.pem", max_retries=0, max_response_size=100_000, circuit_threshold=0,
        )  # fmt: skip
        with pool.session(config) as session:
            if path == "/echo":
                answer = session.get(path, params={"api_key": CANARY})
                assert answer.json()["target"] == f"/echo?api_key={CANARY}"
                assert session.get(f"/status?code=404&api_key={CANARY}").status_code == 404
            else:
                with pytest.raises(requests.RequestException) as caught:
                    session.put(path, params={"api_key": CANARY}, timeout=0.3)
                assert CANARY not in "".join(traceback.format_exception(caught.value))
        assert path == "refused" or CANARY in server.seen[0].target
    assert "HTTP/1.1" in everything_logged.text or path not in ("/echo", "/endless")
    assert CANARY not in everything_logged.text


async def test_a_token_functions_own_error_is_the_callers(ask: Ask, server: MisbehavingServer) -> None:
    """A token of the wrong form is an error that does not show it."""
    for token in (f"{CANARY}\n", CANARY.encode(), {"token": CANARY}):
        with pytest.raises(ConfigError) as caught:
            await ask(HTTPConfig(server.url, auth=lambda token=token: token), "GET", "/echo")
        assert CANARY not in shown(caught.value)
