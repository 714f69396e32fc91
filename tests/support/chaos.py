"""A TCP proxy that resets and swallows, and speaks TLS for a server that cannot."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct

from tests.support.tcp_server import TCPServer

_TLS_REQUEST = 80877103


class Proxy(TCPServer):
    """Passes bytes between clients and a server on another port, until told otherwise.

    Args:
        port: where the server listens, on 127.0.0.1.
        tls: with what to answer clients of PostgreSQL that ask for TLS; the server itself sees none.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(port)
        self._tls = tls
        self.certified: list[bool] = []
        """Of each client with TLS, whether it has shown a certificate."""
        self._open = asyncio.Event()  # bytes pass; cleared, they vanish, and nobody is told
        self._open.set()

    def swallow(self) -> None:
        """Be a black hole: accept, and pass nothing on."""
        self._loop.call_soon_threadsafe(self._open.clear)

    @property
    def swallowing(self) -> bool:
        """Whether it is a black hole by now."""
        return not self._open.is_set()

    def pass_on(self) -> None:
        """Pass everything on again."""
        self._loop.call_soon_threadsafe(self._open.set)

    def reset_all(self) -> None:
        """Reset every connection, and return when that is done."""
        asyncio.run_coroutine_threadsafe(self._reset_all(), self._loop).result(10)

    async def _reset_all(self) -> None:
        for writer in self._writers:
            bare = writer.get_extra_info("socket")
            if bare.fileno() >= 0:
                # With this, closing sends a reset.
                bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self._abort_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._open.wait()
            begun = await self._answer_tls_request(reader, writer) if self._tls is not None else b""
            server_reader, server_writer = await self._open_target()
            server_writer.write(begun)
            await asyncio.gather(self._pump(reader, server_writer), self._pump(server_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()  # the client went away, or does not trust the certificate

    async def _answer_tls_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Speak TLS if the client's first message asks for it, else return that message's beginning."""
        first = await reader.readexactly(8)
        if struct.unpack("!ii", first) != (8, _TLS_REQUEST):
            return first
        writer.write(b"S")
        await writer.drain()
        assert self._tls is not None
        await writer.start_tls(self._tls)
        self.certified.append(bool(writer.get_extra_info("peercert")))
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
