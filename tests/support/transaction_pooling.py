"""A pooler between clients and PostgreSQL that lends a server connection for one transaction, as PgBouncer does.

Clients log in to the server through it once; from then on each transaction of theirs runs on whichever server
connection is free, so that what one transaction leaves in a session (a prepared statement) is found, or missed,
by another client.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from types import TracebackType
from typing import Self

_READY = b"Z"
_IDLE = b"I"
_TERMINATE = b"X"
_ANSWERED = (b"Q", b"S")  # Query and Sync, each of which the server answers by saying that it is ready
_CANCEL_REQUEST = 80877102
_TLS_REQUEST = 80877103


class TransactionPooler:
    """Shares the server connections of all clients between them, transaction by transaction.

    Args:
        port: where the server listens, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._ready = threading.Event()
        # First in, first out: so that clients meet each other's sessions soon.
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._served: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._turn = 0
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

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for task in self._served:
            task.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        for _ in range(3):
            await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._served.add(task)
        self._writers.append(writer)
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
            self._served.discard(task)
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
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.append(server_writer)
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
