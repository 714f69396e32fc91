"""Connections of synchronous requests: urllib3's own, made so that every phase obeys the deadline."""

from __future__ import annotations

import http.client
import io
import socket
import time
from base64 import b64encode
from typing import Any
from urllib.parse import unquote

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.url import parse_url

from app.pools.http_pool.addresses import require_public
from app.pools.http_pool.deadlines import Guard
from app.pools.http_pool.route import Route


class TruncatedHeaders(http.client.HTTPException):
    """The connection ended within the headers."""


class _Reader(io.BufferedReader):
    """Reads a response and remembers whether a line was asked for after the end."""

    ended = False

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n"):
            self.ended = True
        return line


class _Response(http.client.HTTPResponse):
    """A response whose headers are complete: http.client takes the end of the connection for their end, and so
    makes a 200 with an empty body out of a broken one."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp: io.BufferedReader = _Reader(sock.makefile("rb", buffering=0))

    def begin(self) -> None:
        reader = self.fp  # which begin() drops where there is no body
        super().begin()
        # Nothing but the headers was read until here.
        if isinstance(reader, _Reader) and reader.ended:
            raise TruncatedHeaders("the connection ended within the response's headers")


class PlainConnection(HTTPConnection):
    """An http connection."""

    response_class = _Response
    guard: Guard | None = None
    """The guard of the request that connects."""
    block_private = False
    """Whether only public addresses are dialled."""

    def _new_conn(self) -> socket.socket:
        return _dial(self)


class SecureConnection(HTTPSConnection):
    """An https connection."""

    response_class = _Response
    guard: Guard | None = None
    """The guard of the request that connects."""
    block_private = False
    """Whether only public addresses are dialled."""

    def _new_conn(self) -> socket.socket:
        return _dial(self)


Connection = PlainConnection | SecureConnection


def make_connection(route: Route) -> Connection:
    """Return a connection that is not open yet."""
    target, context, proxy = route.target, route.context, route.proxy
    if proxy is None:
        direct: Connection
        if context is None:
            direct = PlainConnection(target.host, target.port)
        else:
            direct = SecureConnection(target.host, target.port, ssl_context=context, server_hostname=target.host)
        direct.block_private = route.block_private
        return direct
    through = parse_url(proxy)
    host, port = through.host or "", through.port or 80
    if context is None:
        return PlainConnection(host, port, proxy=through)
    tunnelled = SecureConnection(host, port, proxy=through, ssl_context=context, server_hostname=target.host)
    tunnelled.set_tunnel(target.host, target.port, headers=proxy_headers(proxy), scheme="http")
    return tunnelled


def proxy_headers(proxy: str) -> dict[str, str]:
    """Return the credentials that a proxy's URL carries, as the header it expects."""
    credentials = parse_url(proxy).auth
    if not credentials:
        return {}
    return {"Proxy-Authorization": f"Basic {b64encode(unquote(credentials).encode()).decode()}"}


def open_connection(connection: Connection, guard: Guard, seconds: float) -> None:
    """Connect within ``seconds``, name resolution excepted, which cannot be interrupted.

    Raises:
        OSError: it failed; no request was sent.
    """
    connection.guard = guard
    connection.timeout = seconds
    try:
        connection.connect()
    finally:
        connection.guard = None
        if isinstance(connection, SecureConnection) and guard.sock is not None:
            guard.sock.close()
            guard.sock = None
    connection.timeout = None  # from here on the watchdog holds the deadline, also against one who trickles


def _dial(connection: Connection) -> socket.socket:
    """Return a socket to the connection's host: the first of its addresses that answers."""
    limit = connection.timeout if isinstance(connection.timeout, int | float) else None
    deadline = None if limit is None else time.monotonic() + limit
    failure: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(
        connection._dns_host, connection.port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, protocol)
        try:
            if connection.block_private:
                # The address that is dialled, and not the name's at some earlier moment, is what counts.
                require_public(str(address[0]))
            sock.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _place_under_watch(connection, sock)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            return sock
    raise failure or OSError(f"no address for {connection.host}")


def _place_under_watch(connection: Connection, sock: socket.socket) -> None:
    guard = connection.guard
    if guard is not None:
        # The TLS handshake takes the socket over and leaves this object empty, hence a second one for it.
        guard.sock = sock.dup() if isinstance(connection, SecureConnection) else sock
