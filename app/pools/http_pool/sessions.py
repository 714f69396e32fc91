"""Leased sessions: a real ``requests.Session``, new for each lease, over connections that stay open."""

from __future__ import annotations

import ssl
from typing import Any

import requests
from pydantic import SecretStr
from requests.adapters import HTTPAdapter

from app.pools.core.redaction import redact_url
from app.pools.errors import InvalidURL
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.route import Route
from app.pools.http_pool.urls import join, parse_base


class SharedAdapter(HTTPAdapter):
    """The connections under a leased session. The session closes nothing; the pool does."""

    def __init__(self, route: Route) -> None:
        self._context = route.context
        super().__init__(pool_connections=4, pool_maxsize=4)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Give every connection the route's TLS context."""
        if self._context is not None:
            options["ssl_context"] = self._context
        super().init_poolmanager(*args, **options)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave verification to the context; requests would load the bundle again for each connection."""

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """Make the context the only word on trust."""
        host, options = super().build_connection_pool_key_attributes(request, True, None)
        if self._context is not None:
            options.pop("ca_certs", None)
            options["ssl_context"] = self._context
            options["cert_reqs"] = "CERT_NONE" if self._context.verify_mode is ssl.CERT_NONE else "CERT_REQUIRED"
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
        if parse_base(address.partition("?")[0].partition("#")[0]).origin != target.origin:
            raise InvalidURL(f"{redact_url(address)!r} is not of {target.origin}; make an HTTPConfig for that origin")
        return address

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send with the configuration's timeouts unless others are given."""
        if options.get("timeout") is None:
            options["timeout"] = (self._config.connect_timeout, self._config.timeout)
        return super().send(request, **options)

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Drop everything secret where a redirect leaves the origin."""
        url = (prepared_request.url or "").partition("?")[0].partition("#")[0]
        if parse_base(url).origin != self._config.target.origin:
            harmless = {"accept", "accept-encoding", "accept-language", "user-agent", "content-type", "content-length"}
            for name in [name for name in prepared_request.headers if name.lower() not in harmless]:
                del prepared_request.headers[name]
