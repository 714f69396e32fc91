"""Servers and pools that the tests of the HTTP pool share."""

from collections.abc import Iterator

import pytest

from app.pools.http_pool import HTTPConfig, HTTPPool
from tests.support.misbehaving import MisbehavingServer, misbehaving_server


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
