"""A TCP proxy that resets and swallows, and speaks TLS for a server that cannot."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from types import TracebackType
from typing import Self

_TLS_REQUEST = 80877103


class Proxy:
    """Passes bytes between clients and a server on another port, until told otherwise.

    Args:
        port: where the server listens, on 127.0.0.1.
        tls: with what to answer clients of PostgreSQL that ask for TLS; the server itself sees none.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._target = port
        self._open = asyncio.Event()  # bytes pass; cleared, they vanish, and nobody is told
        self._writers: set[asyncio.StreamWriter] = set()
        self._served: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def swallow(self) -> None:
        """Be a black hole: accept, and pass nothing on."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def pass_on(self) -> None:
        """Pass everything on again."""
        self._loop.call_soon_threadsafe(self._open.set)

    def reset_all(self) -> None:
        """Reset every connection, and return when that is done."""
        asyncio.run_coroutine_threadsafe(self._reset_all(), self._loop).result(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._open.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for served in self._served:
            served.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)
        await self._reset_all()

    async def _reset_all(self) -> None:
        for writer in list(self._writers):
            bare = writer.get_extra_info("socket")
            if bare.fileno() >= 0:
                # With this, closing sends a reset.
                bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()
        for _ in range(3):  # for the transports to close, which they do in the next rounds of the loop
            await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._served.add(task)
        self._writers.add(writer)
        try:
            await self._open.wait()
            begun = await self._answer_tls_request(reader, writer) if self._tls is not None else b""
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(server_writer)
            server_writer.write(begun)
            await asyncio.gather(self._pump(reader, server_writer), self._pump(server_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()  # the client went away, or does not trust the certificate
        finally:
            self._served.discard(task)

    async def _answer_tls_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Speak TLS if the client's first message asks for it, else return that message's beginning."""
        first = await reader.readexactly(8)
        if struct.unpack("!ii", first) != (8, _TLS_REQUEST):
            return first
        writer.write(b"S")
        await writer.drain()
        assert self._tls is not None
        await writer.start_tls(self._tls)
        return b""

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the other side was cut, which is what this proxy is for
        finally:
            self._writers.discard(writer)
            writer.close()
