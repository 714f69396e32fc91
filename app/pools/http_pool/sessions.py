"""Leased sessions: a real ``requests.Session``, new for each lease, over connections that stay open."""

from __future__ import annotations

from typing import Any

import requests
from pydantic import SecretStr
from requests.structures import CaseInsensitiveDict

from app.pools.core.redaction import redact_url
from app.pools.errors import InvalidURL
from app.pools.http_pool.account import Account
from app.pools.http_pool.adapters import SharedAdapter
from app.pools.http_pool.redirects import harmless
from app.pools.http_pool.session_calls import SessionAdapter
from app.pools.http_pool.urls import is_of, join

# What delimits a body that requests sends again; it holds no secret.
_FRAMING = frozenset({"content-length", "transfer-encoding"})


class LeasedSession(requests.Session):
    """A ``requests.Session`` for one API: paths are joined below its base URL, headers and credentials are set.

    Its cookies live as long as the lease. A request has the configuration's timeouts, which requests applies to
    connecting and to each pause of the server, unless it gives its own.
    """

    def __init__(self, account: Account, adapter: SharedAdapter) -> None:
        super().__init__()
        config, proxy = account.config, account.transport.route.proxy
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
        ruled = SessionAdapter(account, adapter)
        self.mount("https://", ruled)
        self.mount("http://", ruled)

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
