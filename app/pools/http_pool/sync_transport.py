"""The synchronous transport: one attempt at a time over urllib3 connections that a bucket bounds and keeps."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping

import urllib3
from urllib3.util.response import is_fp_closed
from urllib3.util.wait import wait_for_read

from app.pools.core.bucket import NEVER, Bucket, Entry, Limits
from app.pools.core.budget import Budget
from app.pools.http_pool.calls import Call, Failure, Reply
from app.pools.http_pool.connections import (
    Connection,
    make_connection,
    open_connection,
    proxy_headers,
)
from app.pools.http_pool.deadlines import Guard, watchdog
from app.pools.http_pool.decoding import Decoder, Undecodable
from app.pools.http_pool.failures import describe, failed
from app.pools.http_pool.route import Route

_CHUNK = 256 * 1024
_FAILURES = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, Undecodable)


class SyncTransport:
    """Connections of one route, each used by one request at a time.

    Args:
        route: the origin, TLS, proxy and limits that its connections have in common.
        leak_threshold: seconds after which a request still out is reported; 0 never.
        budget: bounds the connections together with those of tasks and sessions.
    """

    def __init__(self, route: Route, leak_threshold: float, budget: Budget) -> None:
        self._route = route
        self.bucket: Bucket[Connection] = Bucket(
            "http",
            route.label,
            Limits(
                capacity=route.max_connections,
                idle_timeout=route.keepalive,
                max_lifetime=route.max_lifetime,
                leak_threshold=leak_threshold or NEVER,
                fair_after=0.01,
                setting=route.setting,
            ),
            create=lambda: make_connection(route),
            destroy=_close,
            usable=self._usable,
            budget=budget,
        )
        self._forwarded = route.proxy is not None and route.context is None
        self._proxy_headers = proxy_headers(route.proxy) if route.proxy is not None and self._forwarded else {}

    def _usable(self, entry: Entry[Connection], now: float) -> bool:
        sock = entry.resource.sock
        # Readable while idle means closed by the server, or about to be.
        return (
            sock is not None and now - entry.idle_since < self._route.keepalive and not wait_for_read(sock, timeout=0.0)
        )

    def open(self, call: Call) -> SyncBody | Failure:
        """Make one attempt and return its answer with the body still to be read.

        Raises:
            PoolTimeout: every connection was in use until the deadline.
        """
        entry = self.bucket.checkout(call.remaining())
        guard = Guard(call.deadline)
        sent = False
        opened: SyncBody | None = None
        try:
            watchdog.watch(guard)
            connection = entry.resource
            if connection.sock is None:
                # Not `remaining()`, whose DeadlineExceeded is an OSError: the watchdog says when it is too late.
                left = max(0.001, call.deadline - time.monotonic())
                open_connection(connection, guard, min(call.config.connect_timeout, left))
                call.account.origin.connected()
            guard.sock = connection.sock
            sent = True
            connection.request(
                call.method,
                call.url if self._forwarded else call.path,
                call.body,
                {**call.headers, **self._proxy_headers} if self._forwarded else call.headers,
                preload_content=False,
                decode_content=False,
            )
            opened = SyncBody(self.bucket, entry, guard, connection.getresponse(), call)
        except _FAILURES as error:
            return failed(error, call, sent=sent)
        finally:
            if opened is None:
                watchdog.release(guard)
                self.bucket.discard(entry)
        return opened

    def send(self, call: Call) -> Reply | Failure:
        """Make one attempt and return its answer with the whole body.

        Raises:
            PoolTimeout: every connection was in use until the deadline.
            ResponseTooLarge: the body is larger than the call allows.
        """
        opened = self.open(call)
        if isinstance(opened, Failure):
            return opened
        try:
            content = opened.read_all()
        except _FAILURES as error:
            return failed(error, call, sent=True)
        finally:
            in_time = opened.close()
        if not in_time:
            return Failure("the deadline cut it short", sent=True, late=True)
        answer = opened.answer
        return Reply(answer.status, answer.headers, answer.headers.iteritems(), content)


class SyncBody:
    """An answer whose body is still to be read. Its connection must be given back with ``close``."""

    __slots__ = ("_bucket", "_call", "_decoder", "_entry", "_guard", "_size", "answer")

    def __init__(
        self,
        bucket: Bucket[Connection],
        entry: Entry[Connection],
        guard: Guard,
        answer: urllib3.BaseHTTPResponse,
        call: Call,
    ) -> None:
        self._bucket = bucket
        self._entry: Entry[Connection] | None = entry
        self._guard = guard
        self._call = call
        self._decoder: Decoder | None = None
        self._size = 0
        self.answer = answer

    @property
    def status(self) -> int:
        """The status."""
        return self.answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers."""
        return self.answer.headers

    def read_all(self) -> bytes:
        """Return the whole body, decompressed.

        Raises:
            ResponseTooLarge: it is larger than the call allows; no more than that was kept in memory.
        """
        answer = self.answer
        limit = self._call.size_limit
        length = answer.length_remaining
        if length is not None and "Content-Encoding" not in answer.headers:
            if length > limit:
                raise self._call.too_large()
            return answer.read()
        chunks = []
        while chunk := self._decoded(answer.read):
            self._count(chunk)
            chunks.append(chunk)
        return b"".join(chunks)

    def _decoded(self, read: Callable[[int], bytes]) -> bytes:
        """Return the next decoded piece, calling ``read`` for more; ``b""`` at the end."""
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = Decoder(self.answer.headers)
        while not (piece := decoder.take()):
            data = read(_CHUNK)
            if not data:
                decoder.end()
                return b""
            decoder.feed(data)
        return piece

    def read_some(self, idle: float, deadline: float) -> bytes | Failure:
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
            watchdog.extend(self._guard, min(time.monotonic() + idle, deadline))
            chunk = self._decoded(self.answer.read1)
        except _FAILURES as error:
            failure = describe(error, sent=True)
            failure.late = not watchdog.extend(self._guard, NEVER)
            return failure
        # The reader's own time does not count: only waiting for the server does.
        if not watchdog.extend(self._guard, NEVER):
            return Failure("nothing arrived in time", sent=True, late=True)
        self._count(chunk)
        return chunk

    def _count(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._call.size_limit:
            raise self._call.too_large()

    def close(self) -> bool:
        """Give the connection back, or close it if the body was not read to its end.

        Returns:
            whether the deadline was kept: otherwise what was read since is worth nothing.
        """
        entry, self._entry = self._entry, None
        if entry is None:
            return True
        in_time = watchdog.release(self._guard)
        if in_time and entry.resource.sock is not None and is_fp_closed(self.answer):
            self._bucket.give_back(entry)
        else:
            self._bucket.discard(entry)
            self.answer.close()
        return in_time


def _close(connection: Connection) -> None:
    connection.close()
