"""Bodies that the caller produces: sent once, and blamed on the caller when they fail."""

from collections.abc import AsyncIterator, Iterator

import pytest

from app.pools.http_pool import HTTPConfig, HTTPPool
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import MisbehavingServer


@pytest.mark.parametrize("kind", [OSError, ValueError, TimeoutError, ConnectionResetError])
async def test_an_error_of_the_callers_body_reaches_the_caller(
    ask: Ask, pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer, kind: type[Exception]
) -> None:
    """What an iterable body raises is raised as it is: not the network's fault, not retried, nothing left behind."""

    def pieces() -> Iterator[bytes]:
        yield b"one"
        raise kind("disk on fire")

    with pytest.raises(kind, match="disk on fire") as caught:
        await ask(config, "PUT", "/echo", data=pieces())
    assert type(caught.value) is kind
    figures = pool.get_stats()["pools"][server.url]
    assert (figures["attempts"], figures["in_flight"], figures["active"]) == (1, 0, 0)
    assert (await ask(config, "GET", "/echo")).ok


async def test_an_error_of_an_asynchronous_body_reaches_the_caller(pool: HTTPPool, config: HTTPConfig) -> None:
    """The same holds for an asynchronous iterable; a synchronous request says that it cannot send one."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        await pool.request_async(config, "PUT", "/echo", data=pieces())
    with pytest.raises(TypeError, match="only request_async"):
        pool.request(config, "PUT", "/echo", data=pieces())


async def test_pieces_are_bytes(ask: Ask, config: HTTPConfig) -> None:
    """A body that is or yields something else than bytes is a TypeError that says so."""
    with pytest.raises(TypeError, match="data= yields str"):
        await ask(config, "PUT", "/echo", data=iter(["text"]))
    with pytest.raises(TypeError, match="not int"):
        await ask(config, "PUT", "/echo", data=7)
    assert (await ask(config, "PUT", "/echo", data=memoryview(b"view"))).json()["body"] == "view"
