"""The benchmark's own server, in a process of its own: a small JSON body over http, https, and https far away."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import certifi

TLS = Path(__file__).parents[1] / "tests/support/tls"

BODY = b'{"items": [' + b", ".join(b'{"id": %d, "name": "item %d"}' % (i, i) for i in range(8)) + b"]}"
_HEAD = b"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: application/json\r\n"
_ANSWER = _HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

ROUND_TRIP = 0.020


@dataclass(frozen=True)
class Addresses:
    """Where the server listens; nobody listens at ``down``."""

    http: str
    https: str
    far: str
    down: str
    authorities: str
    """A bundle that trusts the server, of the size that programs load: certifi's and the server's authority."""


class _Answerer(asyncio.Protocol):
    """Answers every request alike, without looking further than its end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        self._transport.write(_ANSWER * len(requests))
        if requests and b"connection: close" in requests[-1].lower():
            self._transport.close()


class _Distance:
    """Forwards a connection as if its other end were one ``ROUND_TRIP`` away, the TCP handshake included."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The client's connect() has returned long ago; what it sends first is held back for as long instead.
        first = await reader.read(1 << 16)
        await asyncio.sleep(ROUND_TRIP)
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        asyncio.get_running_loop().call_later(ROUND_TRIP / 2, back.write, first)
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer), return_exceptions=True)

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            loop.call_later(ROUND_TRIP / 2, writer.write, data)
        loop.call_later(ROUND_TRIP / 2, writer.close)


async def _serve(ready: Connection) -> None:
    loop = asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    plain = await loop.create_server(_Answerer, "127.0.0.1", 0, backlog=1024)
    secure = await loop.create_server(_Answerer, "127.0.0.1", 0, ssl=context, backlog=1024)
    distance = _Distance(secure.sockets[0].getsockname()[1])
    far = await asyncio.start_server(distance.carry, "127.0.0.1", 0, backlog=1024)
    ready.send([server.sockets[0].getsockname()[1] for server in (plain, secure, far)])
    await asyncio.Event().wait()


def _run(ready: Connection) -> None:
    asyncio.run(_serve(ready))


@contextmanager
def running() -> Iterator[Addresses]:
    """Run the server for the length of a block."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(there,), daemon=True)
    process.start()
    plain, secure, far = here.recv()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        down = nobody.getsockname()[1]
    try:
        with tempfile.NamedTemporaryFile(suffix=".pem") as bundle:
            bundle.write(Path(certifi.where()).read_bytes() + (TLS / "ca.pem").read_bytes())
            bundle.flush()
            yield Addresses(
                f"http://127.0.0.1:{plain}",
                f"https://127.0.0.1:{secure}",
                f"https://127.0.0.1:{far}",
                f"http://127.0.0.1:{down}",
                bundle.name,
            )
    finally:
        process.terminate()
        process.join()
