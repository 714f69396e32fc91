"""A TCP server in a thread of its own, for tests that put something between a client and its server."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class TCPServer(ABC):
    """Listens on a free port of 127.0.0.1 while its block lasts.

    Args:
        target: the port of the server behind it, on 127.0.0.1.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._served: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        """The open connections, those to clients and those to the server behind."""
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it goes away."""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the server did not stop"

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for served in self._served:
            served.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)
        await self._abort_all()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio's would log its cancellation as an error.
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._served.add(task)
        task.add_done_callback(self._served.discard)
        self._writers.add(writer)

    async def _open_target(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the server behind."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(writer)
        return reader, writer

    async def _abort_all(self) -> None:
        """Break every connection off."""
        for writer in list(self._writers):
            writer.transport.abort()
        self._writers.clear()
        for _ in range(3):  # for the transports to close, which they do in the next rounds of the loop
            await asyncio.sleep(0)
