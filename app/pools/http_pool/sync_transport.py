"""The synchronous transport: one attempt at a time over urllib3 connections that a bucket bounds and keeps."""

from __future__ import annotations

import http.client

import urllib3
from urllib3.util.wait import wait_for_read

from app.pools.core.bucket import NEVER, Bucket, Entry, Limits
from app.pools.http_pool.calls import Call, Failure, Reply
from app.pools.http_pool.connections import (
    Connection,
    make_connection,
    open_connection,
    proxy_headers,
)
from app.pools.http_pool.deadlines import Guard, watchdog
from app.pools.http_pool.failures import describe
from app.pools.http_pool.route import Route

_CHUNK = 256 * 1024


class SyncTransport:
    """Connections of one route, each used by one request at a time.

    Args:
        route: the origin, TLS, proxy and limits that its connections have in common.
        leak_threshold: seconds after which a request still out is reported; 0 never.
    """

    def __init__(self, route: Route, leak_threshold: float) -> None:
        self._route = route
        self.bucket: Bucket[Connection] = Bucket(
            "http",
            route.label,
            Limits(
                capacity=route.max_connections,
                idle_timeout=route.keepalive,
                leak_threshold=leak_threshold or NEVER,
                fair_after=0.01,
            ),
            create=lambda: make_connection(route.target, route.context, route.proxy),
            destroy=_close,
            usable=self._usable,
        )
        self._forwarded = route.proxy is not None and route.context is None
        self._proxy_headers = proxy_headers(route.proxy) if route.proxy is not None and self._forwarded else {}

    def _usable(self, entry: Entry[Connection], now: float) -> bool:
        sock = entry.resource.sock
        # Readable while idle means closed by the server, or about to be.
        return (
            sock is not None and now - entry.idle_since < self._route.keepalive and not wait_for_read(sock, timeout=0.0)
        )

    def send(self, call: Call) -> Reply | Failure:
        """Make one attempt and return its outcome, the whole body read.

        Raises:
            PoolTimeout: every connection was in use until the deadline.
            DeadlineExceeded: the deadline came first.
        """
        entry = self.bucket.checkout(call.remaining())
        guard = watchdog.watch(call.deadline)
        outcome: Reply | Failure | None = None
        in_time = reusable = False
        try:
            outcome, reusable = self._exchange(entry.resource, guard, call)
        finally:
            in_time = watchdog.release(guard)
            if reusable and in_time:
                self.bucket.give_back(entry)
            else:
                self.bucket.discard(entry)
        if not in_time:
            raise call.too_late()
        return outcome

    def _exchange(self, connection: Connection, guard: Guard, call: Call) -> tuple[Reply | Failure, bool]:
        sent = False
        try:
            if connection.sock is None:
                open_connection(connection, guard, min(call.config.connect_timeout, call.remaining()))
                call.origin.connected()
            guard.sock = connection.sock
            sent = True
            connection.request(
                call.method,
                call.url if self._forwarded else call.path,
                call.body,
                {**call.headers, **self._proxy_headers} if self._forwarded else call.headers,
                preload_content=False,
            )
            answer = connection.getresponse()
            content = read_capped(answer, call)
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError) as error:
            return describe(error, sent=sent), False
        reply = Reply(answer.status, answer.headers, answer.headers.iteritems(), content)
        return reply, connection.sock is not None


def read_capped(answer: urllib3.BaseHTTPResponse, call: Call) -> bytes:
    """Return the whole body, decompressed.

    Raises:
        ResponseTooLarge: it is larger than the configuration allows; no more than that was kept in memory.
    """
    limit = call.config.max_response_size
    length = answer.length_remaining
    if length is not None and "Content-Encoding" not in answer.headers:
        if length > limit:
            raise call.too_large()
        return answer.read()
    chunks = []
    size = 0
    while chunk := answer.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise call.too_large()
        chunks.append(chunk)
    return b"".join(chunks)


def _close(connection: Connection) -> None:
    connection.close()
