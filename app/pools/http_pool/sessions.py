"""Leased sessions: a real ``requests.Session``, new for each lease, over connections that stay open."""

from __future__ import annotations

import ssl
from typing import Any

import requests
from pydantic import SecretStr
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

from app.pools.core.redaction import redact_url
from app.pools.errors import InvalidURL
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.connections import PlainConnection, SecureConnection
from app.pools.http_pool.redirects import harmless
from app.pools.http_pool.route import Route
from app.pools.http_pool.tls import Contexts, without_certificate
from app.pools.http_pool.urls import is_of, join

# What delimits a body that requests sends again; it holds no secret.
_FRAMING = frozenset({"content-length", "transfer-encoding"})


class _PublicPlainConnection(PlainConnection):
    block_private = True


class _PublicSecureConnection(SecureConnection):
    block_private = True


class _PublicPlainPool(HTTPConnectionPool):
    ConnectionCls = _PublicPlainConnection


class _PublicSecurePool(HTTPSConnectionPool):
    ConnectionCls = _PublicSecureConnection


class SharedAdapter(HTTPAdapter):
    """The connections under a leased session. The session closes nothing; the pool does.

    Args:
        route: where the session's own requests go.
        contexts: the TLS contexts.
    """

    def __init__(self, route: Route, contexts: Contexts) -> None:
        self._route = route
        self._contexts = contexts
        super().__init__(pool_connections=4, pool_maxsize=4)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make connections that dial public addresses only, if that is the rule."""
        super().init_poolmanager(*args, **options)
        if self._route.block_private:
            self.poolmanager.pool_classes_by_scheme = {"http": _PublicPlainPool, "https": _PublicSecurePool}

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


class LeasedSession(requests.Session):
    """A ``requests.Session`` for one API: paths are joined below its base URL, headers and credentials are set.

    Its cookies live as long as the lease. A request has the configuration's timeouts unless it gives its own;
    the pool's retries are not applied.
    """

    def __init__(self, config: HTTPConfig, adapter: SharedAdapter, proxy: str | None) -> None:
        super().__init__()
        self._config = config
        self.trust_env = False
        self.verify = config.verify
        self.headers.update(config.headers)
        if isinstance(config.auth, tuple):
            user, password = config.auth
            self.auth = (user, password.get_secret_value() if isinstance(password, SecretStr) else password)
        elif "Authorization" in config.base_headers:
            self.headers["Authorization"] = config.base_headers["Authorization"]
        if proxy is not None:
            self.proxies = {"http": proxy, "https": proxy}
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **options: Any) -> requests.Response:
        """Do what ``requests.Session.request`` does, with a path, or a URL of the configured origin.

        Raises:
            InvalidURL: the URL is of another origin, which must not see these credentials.
        """
        address = url.decode() if isinstance(url, bytes) else url
        return super().request(method, self._absolute(address), *args, **options)

    def _absolute(self, address: str) -> str:
        target = self._config.target
        if not address.startswith(("http://", "https://")):
            return target.origin + join(target, address)
        if not is_of(target, address):
            raise InvalidURL(f"{redact_url(address)!r} is not of {target.origin}; make an HTTPConfig for that origin")
        return address

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send with the configuration's timeouts unless others are given."""
        if options.get("timeout") is None:
            options["timeout"] = (self._config.connect_timeout, self._config.timeout)
        return super().send(request, **options)

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Drop everything secret where a redirect leaves the origin."""
        if not is_of(self._config.target, prepared_request.url or ""):
            prepared_request.headers = CaseInsensitiveDict(harmless(prepared_request.headers, _FRAMING))
