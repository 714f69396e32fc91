"""The connections under leased sessions: those of requests, with the pool's trust, counted, and outliving a session."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any, Self

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.retry import Retry

from app.pools.http_pool.connections import PlainConnection, SecureConnection
from app.pools.http_pool.origins import Origin
from app.pools.http_pool.route import Route
from app.pools.http_pool.tls import Contexts, without_certificate
from app.pools.http_pool.urls import is_of


class _Path(str):
    """A path that shows itself without its query, which may hold a secret: urllib3 logs each request's."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.whole.partition("?")[0]

    @property
    def whole(self) -> str:
        """The path as it is sent."""
        return str.__str__(self)


class _Unrepeated(Retry):
    """No retries: those are the pool's. The error that says so does not show the query."""

    def increment(self, method: str | None = None, url: str | None = None, *args: Any, **options: Any) -> Self:
        return super().increment(method, None if url is None else str(_Path(url)), *args, **options)


class _Connecting:
    """Raises what urllib3's pools expect of a connection that cannot be made, and reports one that was."""

    host: str
    opened: Callable[[], object]

    def request(self, method: str, url: str, *args: Any, **options: Any) -> None:
        path = url.whole if isinstance(url, _Path) else url
        super().request(method, path, *args, **options)  # type: ignore[misc]

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.opened()

    def _new_conn(self) -> socket.socket:
        try:
            sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"no connection to {self.host} in time") from error
        except OSError as error:
            raise NewConnectionError(self, f"no connection to {self.host}: {error}") from error  # type: ignore[arg-type]
        return sock


class _Plain(_Connecting, PlainConnection):
    pass


class _Secure(_Connecting, SecureConnection):
    pass


class _Discreet:
    """Logs requests without their queries."""

    def _make_request(self, conn: Any, method: str, url: str, *args: Any, **options: Any) -> Any:
        return super()._make_request(conn, method, _Path(url), *args, **options)  # type: ignore[misc]


class _PlainPool(_Discreet, HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(_Discreet, HTTPSConnectionPool):
    ConnectionCls = _Secure


class SharedAdapter(HTTPAdapter):
    """The connections under a leased session. The session closes nothing; the pool does.

    Args:
        route: where the session's own requests go.
        contexts: the TLS contexts.
        origin: counts the connections.
    """

    def __init__(self, route: Route, contexts: Contexts, origin: Origin) -> None:
        self._route = route
        self._contexts = contexts
        self._origin = origin
        super().__init__(pool_connections=4, pool_maxsize=4, max_retries=_Unrepeated(0, read=False))

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make connections that are counted, and that dial public addresses only, if that is the rule."""
        super().init_poolmanager(*args, **options)
        self._rule(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
        """Do the same behind a proxy."""
        manager = super().proxy_manager_for(proxy, **options)
        self._rule(manager)
        return manager

    def _rule(self, manager: Any) -> None:
        manager.pool_classes_by_scheme = {
            "http": lambda *where, **options: self._ruled(_PlainPool(*where, **options)),
            "https": lambda *where, **options: self._ruled(_SecurePool(*where, **options)),
        }

    def _ruled(self, pool: Any) -> Any:
        new_connection = pool._new_conn

        def make() -> Any:
            connection = new_connection()
            connection.block_private = self._route.block_private
            connection.opened = self._origin.connected
            return connection

        pool._new_conn = make
        return pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave verification to the context; requests would load the bundle again for each connection."""

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """Make the context the only word on trust, and show the client's certificate to its own origin only."""
        host, options = super().build_connection_pool_key_attributes(request, True, None)
        if host["scheme"] == "https":
            key = self._route.tls if is_of(self._route.target, request.url) else without_certificate(self._route.tls)
            context = self._contexts.get(key)
            options.pop("ca_certs", None)
            options["ssl_context"] = context
            options["cert_reqs"] = "CERT_NONE" if context.verify_mode is ssl.CERT_NONE else "CERT_REQUIRED"
        return host, options

    def close(self) -> None:
        """Do nothing: a session that is closed early must not close what outlives it."""

    def shut(self) -> None:
        """Close the connections."""
        super().close()
