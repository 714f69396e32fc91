"""A pooler between clients and PostgreSQL that lends a server connection for one transaction, as PgBouncer does.

Clients log in to the server through it once; from then on each transaction of theirs runs on whichever server
connection is free, so that what one transaction leaves in a session (a prepared statement) is found, or missed,
by another client.
"""

from __future__ import annotations

import asyncio
import struct

from tests.support.tcp_server import TCPServer

_READY = b"Z"
_IDLE = b"I"
_TERMINATE = b"X"
_ANSWERED = (b"Q", b"S")  # Query and Sync, each of which the server answers by saying that it is ready
_CANCEL_REQUEST = 80877102
_TLS_REQUEST = 80877103


class TransactionPooler(TCPServer):
    """Shares the server connections of all clients between them, transaction by transaction.

    Args:
        port: where the server listens, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        # First in, first out: so that clients meet each other's sessions soon.
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._log_in(reader, writer)
            while True:
                first = await _message(reader)
                if first[:1] == _TERMINATE:
                    return
                server = await self._free.get()
                server[1].write(first)
                await self._transaction(reader, writer, *server, awaited=first[:1] in _ANSWERED)
                await self._free.put(server)
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a client's log-in on to a new server connection, which joins the others then."""
        while True:
            (size,) = struct.unpack("!i", head := await reader.readexactly(4))
            body = await reader.readexactly(size - 4)
            code = struct.unpack("!i", body[:4])[0]
            if code == _CANCEL_REQUEST:
                raise OSError("this pooler passes no cancel on")
            if code != _TLS_REQUEST:
                break
            writer.write(b"N")
        server_reader, server_writer = await self._open_target()
        server_writer.write(head + body)
        await self._transaction(reader, writer, server_reader, server_writer, awaited=1)
        await self._free.put((server_reader, server_writer))

    async def _transaction(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
        *,
        awaited: int,
    ) -> None:
        """Pass messages both ways until the server is idle again and has answered ``awaited`` and all later ones."""

        async def upstream() -> None:
            nonlocal awaited
            while True:
                message = await _message(reader)
                awaited += message[:1] in _ANSWERED
                server_writer.write(message)

        sending = asyncio.create_task(upstream())
        try:
            while True:
                message = await _message(server_reader)
                writer.write(message)
                if message[:1] == _READY:
                    awaited -= 1
                    if not awaited and message[5:6] == _IDLE:
                        return
        finally:
            # Only between two messages: what the client sends next waits in the reader.
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
