"""Servers and pools that the tests of the HTTP pool share."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import pytest

from app.pools.http_pool import HTTPConfig, HTTPPool, HTTPResponse
from tests.support.misbehaving import MisbehavingServer, misbehaving_server

Ask: TypeAlias = "Callable[..., Awaitable[HTTPResponse]]"


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, pool: HTTPPool) -> Ask:
    """``request`` in a thread, and ``request_async``: what holds for one must hold for the other."""

    async def ask(config: HTTPConfig, method: str, path: str, **options: Any) -> HTTPResponse:
        if request.param == "sync":
            return await asyncio.to_thread(pool.request, config, method, path, **options)
        return await pool.request_async(config, method, path, **options)

    return ask


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    """A server that misbehaves on request."""
    with misbehaving_server() as server:
        yield server


@pytest.fixture
def pool() -> Iterator[HTTPPool]:
    """A pool, stopped at the end."""
    with HTTPPool() as pool:
        yield pool


@pytest.fixture
def config(server: MisbehavingServer) -> HTTPConfig:
    """The server's configuration, with short pauses between retries."""
    return HTTPConfig(server.url, timeout=10.0, retry_delay=0.01)
