"""Messages that are on the way for longer than a heartbeat."""

import asyncio
import contextlib

import pytest

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import ConnectionLost
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo import replier
from tests.support.echo_process import echo_process
from tests.support.tcp_server import TCPServer

LONG = bytes(4_000_000)
SECONDS = 4
"""For which it is on the way: a heartbeat is due after one, and was given up two later."""


@pytest.fixture
async def pool():
    async with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


class SlowLink(TCPServer):
    """Passes on so much in each direction that ``LONG`` takes its seconds."""

    async def _serve(self, reader, writer):
        there, back = await self._open_target()
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))

    async def _pass_on(self, source, sink):
        with contextlib.suppress(ConnectionError):
            while data := await source.read(40_000):
                await asyncio.sleep(SECONDS * len(data) / len(LONG))
                sink.write(data)
                await sink.drain()
        sink.close()


async def test_a_long_reply_arrives_over_a_slow_link(pool):
    """A thread and a task get a reply that takes longer than a heartbeat and its answer."""
    with replier(lambda _: [LONG]) as server, SlowLink(int(server.rpartition(":")[2])) as link:
        config = SocketConfig(SocketType.REQ, f"tcp://127.0.0.1:{link.port}", receive_timeout=100)
        replies = await asyncio.gather(asyncio.to_thread(pool.request, config, b"?"), pool.request_async(config, b"?"))
        assert [LONG, LONG] == replies


async def test_a_long_request_arrives_over_a_slow_link(pool):
    """A service of the pool gets a request that takes as long."""
    serving = SocketConfig(SocketType.REP, "tcp://127.0.0.1:*", bind=True)
    async with pool.socket(serving) as server:
        port = int(server.last_endpoint.decode().rpartition(":")[2])
        with SlowLink(port) as link:
            config = SocketConfig(SocketType.REQ, f"tcp://127.0.0.1:{link.port}", receive_timeout=100)
            asking = asyncio.create_task(pool.request_async(config, LONG))
            assert LONG == await asyncio.wait_for(server.recv(), 60)
            await server.send(b"ok")
            assert b"ok" == await asking


async def test_a_task_does_not_wait_long_for_a_server_that_stands_still(pool):
    """With heartbeats as they are by default, what watches the endpoint tells; the server is met again later."""
    with echo_process("REP") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=600)
        for _ in range(2):
            assert b"warm" == await pool.request_async(config, b"warm")
            server.freeze()
            with pytest.raises(ConnectionLost):
                await asyncio.wait_for(pool.request_async(config, b"frozen"), 60)
            server.thaw()
