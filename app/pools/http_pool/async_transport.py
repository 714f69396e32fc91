"""The asynchronous transport: one aiohttp session for each event loop, closed with its loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import random
import socket
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from http.cookies import BaseCookie
from typing import Any, TypeAlias

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDictProxy, istr
from yarl import URL

from app.pools.core import forks
from app.pools.core.bucket import NEVER, Bucket, Entry, Limits
from app.pools.core.budget import Budget
from app.pools.http_pool.addresses import require_public
from app.pools.http_pool.bodies import asynchronous
from app.pools.http_pool.calls import Call, Failure, Reply
from app.pools.http_pool.config import DEFAULT_HEADERS
from app.pools.http_pool.decoding import Decoder, Undecodable
from app.pools.http_pool.failures import NoThread, describe, failed
from app.pools.http_pool.origins import Origin
from app.pools.http_pool.route import Route

# Names whose lower case is known: aiohttp asks for it with every request.
_DEFAULT_HEADERS = {istr(name): value for name, value in DEFAULT_HEADERS.items()}
_NO_GUESSED_TYPE = ("Content-Type",)
Opened: TypeAlias = "weakref.WeakKeyDictionary[ResponseHandler, float]"
"""Open connections, and when each one's lifetime ends, in monotonic seconds."""

_FAILURES = (aiohttp.ClientError, OSError, Undecodable)
_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class Slot:
    """The right to have one request under way."""


class _NoCookies(aiohttp.DummyCookieJar):
    """Keeps no cookie, and does not make a new empty jar for each request to say so."""

    def __init__(self) -> None:
        super().__init__()
        self._none = super().filter_cookies(URL())

    def filter_cookies(self, request_url: URL) -> BaseCookie[str]:
        """Return no cookie."""
        return self._none


class _Connector(aiohttp.TCPConnector):
    """Counts the connections that it opens, and ends them in time."""

    def __init__(self, origin: Origin, opened: Opened, max_lifetime: float, **options: Any) -> None:
        super().__init__(**options)
        self._origin = origin
        self._opened = opened
        self._max_lifetime = max_lifetime

    async def _create_connection(self, req: aiohttp.ClientRequest, *args: Any, **kwargs: Any) -> ResponseHandler:
        try:
            protocol = await super()._create_connection(req, *args, **kwargs)
        except RuntimeError as error:
            if "new thread" not in str(error):
                raise
            # Name resolution takes one; as aiohttp reports what the operating system refuses.
            raise aiohttp.ClientConnectorError(req.connection_key, NoThread(error)) from error
        self._origin.connected()
        self._opened[protocol] = time.monotonic() + self._max_lifetime * random.uniform(0.9, 1.0)
        return protocol

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        # aiohttp knows no age of connections (aiohttp #4948).
        ends = should_close or protocol.should_close or self._opened.get(protocol, NEVER) <= time.monotonic()
        if ends and protocol.transport is not None:
            # Not closed politely: a TLS connection would wait for the server's farewell, and its loop may end before.
            protocol.transport.abort()
        super()._release(key, protocol, should_close=ends)


class _LoopSession:
    """A session and the guard that closes it when its loop ends.

    Args:
        session: the session.
        forget: called when it is closed.
    """

    __slots__ = ("_forget", "guard", "session")

    def __init__(self, session: aiohttp.ClientSession, forget: Callable[[], object]) -> None:
        self.session = session
        self._forget = forget
        self.guard = self._close_at_the_end()

    async def _close_at_the_end(self) -> AsyncGenerator[None, None]:
        # asyncio.run(), and every runner like it, closes the loop's asynchronous generators before the loop:
        # the one moment at which a session, which must be closed by its own loop, can learn that it ends.
        try:
            yield
        finally:
            self._forget()
            await self.session.close()


class AsyncTransport:
    """The sessions of one route. A session belongs to the loop it was made in.

    Args:
        route: the origin, TLS, proxy and limits that its connections have in common.
        origin: counts the connections.
        leak_threshold: seconds after which a request still out is reported; 0 never.
        budget: bounds the connections together with those of threads and sessions.
    """

    def __init__(self, route: Route, origin: Origin, leak_threshold: float, budget: Budget) -> None:
        self._route = route
        self._origin = origin
        self._proxy = URL(route.proxy) if route.proxy is not None else None
        self._sessions: dict[asyncio.AbstractEventLoop, _LoopSession] = {}
        self._opened: Opened = weakref.WeakKeyDictionary()
        # aiohttp bounds the connections of one loop; these bound those of all, in the order of arrival.
        self.slots: Bucket[Slot] = Bucket(
            "http",
            route.label,
            # An idle one is given up where threads or sessions need its place.
            Limits(
                capacity=route.max_connections,
                idle_timeout=route.keepalive,
                leak_threshold=leak_threshold or NEVER,
                setting=route.setting,
            ),
            create=Slot,
            destroy=lambda slot: None,
            budget=budget,
        )

    async def open(self, call: Call) -> AsyncBody | Failure:
        """Make one attempt and return its answer with the body still to be read.

        Raises:
            PoolTimeout: every connection was in use until the deadline.
        """
        entry = await self.slots.checkout_async(call.remaining())
        call.queue = None
        opened: AsyncBody | None = None
        try:
            opened = AsyncBody(self.slots, entry, await self._request(call), call)
        except _FAILURES as error:
            return failed(error, call, sent=not isinstance(error, _NOT_SENT))
        finally:
            if opened is None:
                self.slots.give_back(entry)
        return opened

    async def send(self, call: Call) -> Reply | Failure:
        """Make one attempt and return its answer with the whole body.

        Raises:
            PoolTimeout: every connection was in use until the deadline.
            ResponseTooLarge: the body is larger than the call allows.
        """
        entry = await self.slots.checkout_async(call.remaining())
        call.queue = None
        answer: aiohttp.ClientResponse | None = None
        try:
            answer = await self._request(call)
            content = await _read_all(answer, call)
        except _FAILURES as error:
            return failed(error, call, sent=not isinstance(error, _NOT_SENT))
        finally:
            if answer is not None:
                _finish_with(answer)
            self.slots.give_back(entry)
        return Reply(answer.status, answer.headers, answer.headers.items(), content)

    def _request(self, call: Call) -> Awaitable[aiohttp.ClientResponse]:
        held = self._sessions.get(asyncio.get_running_loop())
        if held is None or held.session.closed:
            return self._request_on_new_session(call)
        return self._request_on(held.session, call)

    async def _request_on_new_session(self, call: Call) -> aiohttp.ClientResponse:
        return await self._request_on(await self._session(), call)

    def _request_on(self, session: aiohttp.ClientSession, call: Call) -> Awaitable[aiohttp.ClientResponse]:
        return session.request(
            call.method,
            URL(call.url, encoded=True),
            data=asynchronous(call.body),
            headers=call.own_headers,
            allow_redirects=False,
            skip_auto_headers=None if call.body is None else _NO_GUESSED_TYPE,
            proxy=self._proxy,
        )

    async def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        held = self._sessions.get(loop)
        if held is None or held.session.closed:
            # No await between the look-up and here, and each loop has one thread: nobody makes a second one.
            forget = functools.partial(self._sessions.pop, loop, None)
            held = self._sessions[loop] = _LoopSession(self._make_session(), forget)
            await anext(held.guard)
        return held.session

    def _make_session(self) -> aiohttp.ClientSession:
        connector = _Connector(
            self._origin,
            self._opened,
            self._route.max_lifetime,
            limit=0,
            ssl=self._route.context if self._route.context is not None else True,
            keepalive_timeout=self._route.keepalive,
            socket_factory=_public_socket if self._route.block_private else None,
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=_NoCookies(),
            headers=_DEFAULT_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._route.connect_timeout),
            trust_env=False,
            auto_decompress=False,
        )
        # aiohttp repeats idempotent requests once by itself, unseen by the policy, the budget and the figures,
        # and has no public switch for it (aiohttp #10790).
        session._retry_connection = False
        return session

    def open_connections(self) -> int:
        """Return how many connections are open, in all loops."""
        return sum(1 for protocol in list(self._opened) if protocol.is_connected())

    def sweep(self) -> None:
        """Forget the sessions of loops that were closed without the help of a runner."""
        for loop in [loop for loop in list(self._sessions) if loop.is_closed()]:
            self._abandon(loop)

    def close(self, deadline: float) -> None:
        """Close every session on its own loop.

        Args:
            deadline: until when to wait for the loops of other threads, in monotonic seconds. A loop that does not
                run now closes its session when it runs again, or ends.
        """
        closing = []
        for loop in list(self._sessions):
            held = self._sessions.pop(loop, None)
            if held is not None and (future := _close_on(loop, held)) is not None:
                closing.append(future)
        for future in closing:
            with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
                future.result(max(0.0, deadline - time.monotonic()))

    def close_idle_loops(self) -> None:
        """Run the loops that nobody runs, only to close their sessions: for a pool that stops for good."""
        if _running_loop() is not None:
            return
        for loop in [loop for loop in list(self._sessions) if not loop.is_running() and not loop.is_closed()]:
            held = self._sessions.pop(loop, None)
            if held is not None:
                with contextlib.suppress(RuntimeError):  # it began to run in another thread at this moment
                    loop.run_until_complete(_finish(held))

    def _abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        held = self._sessions.pop(loop, None)
        if held is not None:
            held.session.detach()

    def forget_after_fork(self) -> None:
        """Start without sessions in a child process; the parent's stay untouched."""
        forks.bury(self._sessions)
        self._sessions = {}
        self._opened = weakref.WeakKeyDictionary()
        self.slots.forget_after_fork()


class AsyncBody:
    """An answer whose body is still to be read. Its connection must be given back with ``close``."""

    __slots__ = ("_call", "_decoder", "_entry", "_size", "_slots", "answer")

    def __init__(self, slots: Bucket[Slot], entry: Entry[Slot], answer: aiohttp.ClientResponse, call: Call) -> None:
        self._slots = slots
        self._entry: Entry[Slot] | None = entry
        self._call = call
        self._decoder = Decoder(answer.headers)
        self._size = 0
        self.answer = answer

    @property
    def status(self) -> int:
        """The status."""
        return self.answer.status

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The headers."""
        return self.answer.headers

    async def read_some(self, idle: float, deadline: float) -> bytes | Failure:
        """Return what arrives next, decompressed; ``b""`` at the end.

        Args:
            idle: seconds to wait for it.
            deadline: the latest moment to wait until, in monotonic seconds.

        Raises:
            ResponseTooLarge: the body is larger than the call allows.
        """
        if self._entry is None:
            return b""
        try:
            async with asyncio.timeout(min(idle, deadline - time.monotonic())):
                chunk = await _decoded(self.answer, self._decoder)
        except TimeoutError:
            return Failure("nothing arrived in time", sent=True, late=True)
        except _FAILURES as error:
            return describe(error, sent=True)
        self._count(chunk)
        return chunk

    def _count(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._call.size_limit:
            raise self._call.too_large()

    def close(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        entry, self._entry = self._entry, None
        if entry is None:
            return
        _finish_with(self.answer)
        self._slots.give_back(entry)


def _finish_with(answer: aiohttp.ClientResponse) -> None:
    """Close the connection, unless the answer was read to its end: then it is back already."""
    if answer.connection is not None:
        answer.close()


async def _read_all(answer: aiohttp.ClientResponse, call: Call) -> bytes:
    """Return the whole body, decompressed; no more than the call allows is kept in memory."""
    length = answer.content_length
    if length is not None and "Content-Encoding" not in answer.headers:
        if length > call.size_limit and call.method != "HEAD":
            raise call.too_large()
        return await answer.read()
    chunks = []
    size = 0
    decoder = Decoder(answer.headers)
    while chunk := await _decoded(answer, decoder):
        size += len(chunk)
        if size > call.size_limit:
            raise call.too_large()
        chunks.append(chunk)
    return b"".join(chunks)


async def _decoded(answer: aiohttp.ClientResponse, decoder: Decoder) -> bytes:
    """Return the next decoded piece; ``b""`` at the end."""
    while not (piece := decoder.take()):
        data = await answer.content.readany()
        if not data:
            decoder.end()
            return b""
        decoder.feed(data)
    return piece


def _public_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    # Called with every address after its name was resolved, so the one that is dialled is the one that is judged.
    family, kind, protocol, _, where = address
    require_public(str(where[0]))
    return socket.socket(family, kind, protocol)


def _close_on(loop: asyncio.AbstractEventLoop, held: _LoopSession) -> concurrent.futures.Future[None] | None:
    """Have a session closed on its loop. Returns a future if another thread does it now."""
    if loop.is_closed():
        held.session.detach()
    elif loop.is_running() and loop is not _running_loop():
        return asyncio.run_coroutine_threadsafe(_finish(held), loop)
    else:
        with contextlib.suppress(RuntimeError):  # closed at this moment
            loop.call_soon_threadsafe(_finish_soon, loop, held)
    return None


def _finish_soon(loop: asyncio.AbstractEventLoop, held: _LoopSession) -> None:
    _tasks.add(task := loop.create_task(_finish(held)))
    task.add_done_callback(_tasks.discard)


async def _finish(held: _LoopSession) -> None:
    await held.guard.aclose()


# A loop holds its tasks weakly.
_tasks: set[asyncio.Task[None]] = set()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
