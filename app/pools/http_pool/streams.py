"""Streams: answers whose body is handed on as it arrives, synchronous and asynchronous."""

from __future__ import annotations

import codecs
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from app.pools.core.bucket import NEVER
from app.pools.errors import DeadlineExceeded, NotAnEventStream
from app.pools.http_pool.async_transport import AsyncBody, AsyncTransport
from app.pools.http_pool.attempts import attempt_until_settled, attempt_until_settled_async
from app.pools.http_pool.calls import Call, Failure
from app.pools.http_pool.events import EventParser, ServerSentEvent
from app.pools.http_pool.response import HTTPResponse, HTTPStatusError, ResponseHead
from app.pools.http_pool.sync_transport import SyncBody, SyncTransport
from app.pools.http_pool.task_limits import TaskLimit

if TYPE_CHECKING:
    from app.pools.http_pool.origins import Origin
    from app.pools.http_pool.pool import HTTPPool


class _Streamed(ResponseHead):
    """What both kinds of streamed response have in common."""

    __slots__ = ("_call", "_deadline", "_idle", "received")

    def __init__(self, call: Call, body: SyncBody | AsyncBody, idle: float, total: float | None) -> None:
        pairs = body.answer.headers.items() if isinstance(body, AsyncBody) else body.answer.headers.iteritems()
        super().__init__(body.status, list(pairs), call.url, time.monotonic() - call.started, call.retries)
        self._call = call
        self._idle = idle
        self._deadline = NEVER if total is None else call.started + total
        self.received = 0

    def _failed(self, failure: Failure) -> NoReturn:
        call = self._call
        label = call.account.origin.label
        if failure.late:
            call.account.origin.deadline_hit()
            raise DeadlineExceeded(
                f"{call.method} {label} sent nothing for {self._idle:g} s, or was not done within its total time, "
                f"after {self.received} bytes; raise idle_timeout= or total_timeout= if that is right"
            )
        raise failure.kind(
            f"{call.method} {label} broke off after {self.received} bytes: {failure.reason}"
        ) from failure.cause


class StreamedResponse(_Streamed):
    """A response whose body is read piece by piece.

    Every way of reading raises ``DeadlineExceeded`` if no piece arrives within the idle timeout,
    ``HTTPUnavailable`` if the connection breaks, and ``ResponseTooLarge`` beyond the limit.
    """

    __slots__ = ("_body",)

    def __init__(self, call: Call, body: SyncBody, idle: float, total: float | None) -> None:
        super().__init__(call, body, idle, total)
        self._body = body

    def iter_bytes(self) -> Iterator[bytes]:
        """Yield the body as it arrives, decompressed."""
        while True:
            piece = self._body.read_some(self._idle, self._deadline)
            if isinstance(piece, Failure):
                self._failed(piece)
            if not piece:
                return
            self.received += len(piece)
            yield piece

    def iter_lines(self) -> Iterator[str]:
        """Yield the body's lines as they arrive, without their ends."""
        lines = _Lines(self.encoding)
        for piece in self.iter_bytes():
            yield from lines.feed(piece)
        yield from lines.end()

    def read(self) -> bytes:
        """Return the rest of the body."""
        return b"".join(self.iter_bytes())


class AsyncStreamedResponse(_Streamed):
    """A response whose body is read piece by piece, with the same errors as ``StreamedResponse``."""

    __slots__ = ("_body",)

    def __init__(self, call: Call, body: AsyncBody, idle: float, total: float | None) -> None:
        super().__init__(call, body, idle, total)
        self._body = body

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, decompressed."""
        while True:
            piece = await self._body.read_some(self._idle, self._deadline)
            if isinstance(piece, Failure):
                self._failed(piece)
            if not piece:
                return
            self.received += len(piece)
            yield piece

    async def iter_lines(self) -> AsyncIterator[str]:
        """Yield the body's lines as they arrive, without their ends."""
        lines = _Lines(self.encoding)
        async for piece in self.iter_bytes():
            for line in lines.feed(piece):
                yield line
        for line in lines.end():
            yield line

    async def read(self) -> bytes:
        """Return the rest of the body."""
        return b"".join([piece async for piece in self.iter_bytes()])


class _Lines:
    """Cuts pieces of text into lines at ``\\n``, ``\\r\\n``."""

    def __init__(self, encoding: str) -> None:
        try:
            self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        except LookupError:
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, piece: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + self._decoder.decode(piece)).split("\n")
        for line in lines:
            yield line.removesuffix("\r")

    def end(self) -> Iterator[str]:
        rest = self._rest + self._decoder.decode(b"", final=True)
        if rest:
            yield rest


class Stream:
    """A request whose response is streamed: ``with`` gives a ``StreamedResponse``, ``async with`` an
    ``AsyncStreamedResponse``. Leaving the block closes what was not read; nothing is sent before it is entered.

    Retries and redirects are followed until the response's headers, never after: what was handed out cannot be
    taken back.
    """

    def __init__(self, pool: HTTPPool, call: Call, idle: float, total: float | None) -> None:
        self._pool = pool
        self._call = call
        self._idle = idle
        self._total = total
        self._origin: Origin | None = None
        self._response: StreamedResponse | AsyncStreamedResponse | None = None

    def __enter__(self) -> StreamedResponse:
        call = self._begin()
        try:
            body = attempt_until_settled(call, self._pool.enter, SyncTransport.open)
            response = self._response = StreamedResponse(call, body, self._idle, self._total)
        except BaseException:
            self._end()
            raise
        return response

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    async def __aenter__(self) -> AsyncStreamedResponse:
        await self._pool.prepare(self._call.config)
        call = self._begin()
        try:
            with TaskLimit(call.deadline):
                body = await attempt_until_settled_async(call, self._pool.enter, AsyncTransport.open)
                response = self._response = AsyncStreamedResponse(call, body, self._idle, self._total)
                return response
            raise call.cut_short()
        except BaseException:
            self._end()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _begin(self) -> Call:
        if self._origin is not None:
            raise RuntimeError("a stream is entered once; ask the pool for another one")
        call = self._call
        call.restart()
        self._origin = self._pool.begin(call)
        return call

    def _end(self) -> None:
        response = self._response
        if response is not None:
            response._body.close()
        if self._origin is not None:
            status = None if response is None else response.status_code
            self._pool.end(
                self._call,
                self._origin,
                status,
                0.0 if response is None else response.request_time,
                0 if response is None else response.received,
            )


class EventStream:
    """Server-sent events: ``with`` gives an iterator of ``ServerSentEvent``, ``async with`` an asynchronous one.

    A stream that breaks off raises ``HTTPUnavailable`` and is not asked for again: only the caller knows whether
    that is safe, and ``event.id`` where it would go on.

    Raises on entering:
        HTTPStatusError: the status is 400 or above; its response has the body.
        NotAnEventStream: the response is something else.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __enter__(self) -> Iterator[ServerSentEvent]:
        response = self._stream.__enter__()
        try:
            if not response.ok:
                raise HTTPStatusError(_whole(response, response.read()))
            _require_event_stream(response)
        except BaseException:
            self._stream.__exit__(None, None, None)
            raise
        return _events(response)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.__exit__(kind, error, trace)

    async def __aenter__(self) -> AsyncIterator[ServerSentEvent]:
        response = await self._stream.__aenter__()
        try:
            if not response.ok:
                raise HTTPStatusError(_whole(response, await response.read()))
            _require_event_stream(response)
        except BaseException:
            await self._stream.__aexit__(None, None, None)
            raise
        return _events_async(response)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, trace)


def _events(response: StreamedResponse) -> Iterator[ServerSentEvent]:
    parser = EventParser()
    for piece in response.iter_bytes():
        yield from parser.feed(piece)


async def _events_async(response: AsyncStreamedResponse) -> AsyncIterator[ServerSentEvent]:
    parser = EventParser()
    async for piece in response.iter_bytes():
        for event in parser.feed(piece):
            yield event


def _require_event_stream(response: ResponseHead) -> None:
    if response.media_type != "text/event-stream":
        raise NotAnEventStream(
            f"{response.url.partition('?')[0]} answered {response.status_code} with {response.media_type!r} instead of "
            "text/event-stream; read it with stream() or request()"
        )


def _whole(head: ResponseHead, content: bytes) -> HTTPResponse:
    return HTTPResponse(
        head.status_code, list(head.headers.items()), content, head.url, head.request_time, head.retries
    )
