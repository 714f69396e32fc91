"""The configuration of an API: where it is, who calls it, and how patient the caller is."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, TypeAlias

from pydantic import SecretStr
from requests.utils import get_netrc_auth

from app.pools.core.allowed import is_number
from app.pools.core.booleans import require_booleans
from app.pools.core.keys import pickled_by_fields
from app.pools.core.redaction import HIDDEN
from app.pools.errors import ConfigError
from app.pools.http_pool.urls import Target, parse_base

TokenFunction: TypeAlias = "Callable[[], str] | Callable[[], Awaitable[str]]"
Auth: TypeAlias = "tuple[str, str | SecretStr] | str | SecretStr | TokenFunction | None"
Path: TypeAlias = "str | os.PathLike[str]"

DEFAULT_HEADERS = {"User-Agent": "poolwire", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}
MEGABYTE = 1024 * 1024

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")

_POSITIVE = (
    "timeout", "connect_timeout", "keepalive", "max_response_size", "idle_timeout", "circuit_reset", "rate_burst",
)  # fmt: skip
_NOT_NEGATIVE = (
    "max_retries", "retry_delay", "max_retry_delay", "max_retry_after", "max_redirects", "circuit_threshold",
)  # fmt: skip
_OPTIONAL = ("max_connections", "max_concurrency", "rate_limit")


@dataclass(frozen=True, eq=False, repr=False)
class HTTPConfig:
    """One API as one caller sees it. Immutable, hashable; two are equal if every field is.

    Requests of different configurations never share headers, credentials or cookies. They share connections
    only where origin, TLS, proxy and limits are the same. All times are seconds.

    Raises:
        InvalidURL: ``base_url`` is not a plain http(s) URL.
        ConfigError: another value is out of range. No message shows a secret.
    """

    base_url: str
    """Every path is joined below it. Without credentials, query or fragment."""
    timeout: float = 30.0
    """The total time of a request: queueing, connecting, redirects, retries and the pauses between them."""
    max_retries: int = 3
    """Further attempts after the first. What is retried: docs/http.md."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request; a header given with a request takes precedence."""
    auth: Auth = None
    """``(user, password)`` for Basic; a bearer token; or a function, plain or asynchronous, that returns a token:
    called once for all who need it, and again when the server answers 401."""
    connect_timeout: float = 5.0
    """For one connection: name resolution, TCP and TLS."""
    retry_delay: float = 0.5
    """The longest pause before the first retry; it doubles with each. The pause is random below it."""
    max_retry_delay: float = 8.0
    """Where the doubling ends."""
    max_retry_after: float = 60.0
    """A server's ``Retry-After`` above this ends the retries at once."""
    verify: bool = True
    """Whether the server's certificate is verified."""
    ca: Path | None = None
    """A PEM file of certificate authorities to trust instead of the bundle that requests uses."""
    cert: Path | tuple[Path, Path] | None = None
    """The client's certificate: a PEM file with its key, or ``(certificate, key)``."""
    proxy: str | SecretStr | None = None
    """An ``http://`` proxy, which may carry credentials. https origins are tunnelled through it."""
    trust_env: bool = False
    """Whether ``HTTP_PROXY``, ``NO_PROXY`` and ``REQUESTS_CA_BUNDLE`` of the environment count, and, without ``auth``,
    the user's netrc file."""
    max_connections: int | None = None
    """Connections in use at the same time, at most, by threads, tasks and leased sessions together;
    ``HTTP_POOL_MAX_CONNECTIONS`` unless given."""
    keepalive: float = 15.0
    """A connection idle for longer is not used again. Keep it below the server's own limit: a request sent
    while the server closes an idle connection is lost."""
    max_response_size: int = 64 * MEGABYTE
    """Bytes of a body, after decompression, at most."""
    idle_timeout: float = 60.0
    """The longest pause between two pieces of a streamed body."""
    max_redirects: int = 5
    """Redirects that are followed, at most; 0 returns the redirect itself."""
    block_private: bool = False
    """Whether only public addresses may be reached, also through redirects: for URLs that others choose."""
    circuit_threshold: int = 20
    """Failures in a row (no response, or 500 to 504) after which the origin is left alone; 0 turns it off."""
    circuit_reset: float = 5.0
    """How long it is left alone before one request tries it."""
    rate_limit: float | None = None
    """Requests per second, at most, of all who share these headers and credentials; the others wait."""
    rate_burst: int = 1
    """How many may go at once after a quiet time."""
    max_concurrency: int | None = None
    """Requests to the origin at the same time, at most, streams included; the others wait in a queue."""

    target: Target = field(init=False)
    """``base_url`` in parts."""
    origin: str = field(init=False)
    """The origin of ``base_url``."""
    base_headers: dict[str, str] = field(init=False)
    """What is sent with every request, credentials that are known beforehand included. Not to be changed."""
    own_headers: dict[str, str] | None = field(init=False)
    """Those of ``base_headers`` that other configurations do not send. Not to be changed."""
    _key: tuple[Any, ...] = field(init=False)
    _hash: int = field(init=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "target", parse_base(self.base_url))
        put(self, "origin", self.target.origin)
        put(self, "headers", MappingProxyType({name: _text(value) for name, value in self.headers.items()}))
        put(self, "auth", _seal(self.auth))
        put(self, "proxy", SecretStr(self.proxy) if isinstance(self.proxy, str) else self.proxy)
        put(self, "ca", self.ca_file)
        put(self, "cert", self.cert_files)
        self._check()
        put(self, "base_headers", _base_headers(self.headers, self._netrc() if self.auth is None else self.auth))
        require_sendable(self.base_headers)
        put(self, "own_headers", beyond_default(self.base_headers))
        # Every field a caller can give, so that none is forgotten when one is added.
        values = [getattr(self, each.name) for each in fields(self) if each.init]
        put(self, "_key", tuple(tuple(sorted(v.items())) if isinstance(v, Mapping) else v for v in values))
        put(self, "_hash", hash(self._key))

    def _check(self) -> None:
        require_booleans(self)
        for name in (*_POSITIVE, *_NOT_NEGATIVE, *_OPTIONAL):
            value = getattr(self, name)
            self._require(name, is_number(value) or (value is None and name in _OPTIONAL), "must be a number")
        for name in _POSITIVE:
            self._require(name, getattr(self, name) > 0, "must be above 0")
        for name in _NOT_NEGATIVE:
            self._require(name, getattr(self, name) >= 0, "must not be below 0")
        for name in _OPTIONAL:
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "must be above 0, or None")
        if self.block_private and (self.proxy is not None or self.trust_env):
            raise ConfigError("HTTPConfig(block_private=True) excludes a proxy, which resolves the names out of sight")
        if isinstance(self.proxy, SecretStr) and not self.proxy.get_secret_value().startswith("http://"):
            raise ConfigError("HTTPConfig(proxy=...) must be an http:// URL; https origins are tunnelled through it")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigError(f"HTTPConfig({name}={getattr(self, name)!r}): {name} {rule}")

    def _netrc(self) -> tuple[str, str] | None:
        """Return what the user's netrc file says of this host, if the environment counts."""
        return get_netrc_auth(self.origin) if self.trust_env else None

    @property
    def ca_file(self) -> str | None:
        """``ca`` as text."""
        return None if self.ca is None else os.fspath(self.ca)

    @property
    def cert_files(self) -> str | tuple[str, str] | None:
        """``cert`` as text."""
        return _paths(self.cert)

    @property
    def tenant(self) -> object:
        """Who calls, as far as the server can tell."""
        return self.auth, tuple(sorted(self.headers.items()))

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, HTTPConfig) else NotImplemented

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        made, _ = pickled_by_fields(self)
        made.keywords["headers"] = dict(self.headers)  # the read-only view of them cannot be pickled
        return made, ()

    def __repr__(self) -> str:
        shown = [f"base_url={self.base_url!r}"]
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "headers" and value:
                shown.append(f"headers={dict.fromkeys(value, HIDDEN)!r}")
            elif each.name in ("auth", "proxy") and value is not None:
                shown.append(f"{each.name}={HIDDEN!r}")
            elif each.init and each.name not in ("base_url", "headers") and value != each.default:
                shown.append(f"{each.name}={value!r}")
        return f"HTTPConfig({', '.join(shown)})"


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value


def _seal(auth: Auth) -> Auth:
    """Return ``auth`` with what is secret in it in a ``SecretStr``."""
    if isinstance(auth, str):
        return SecretStr(auth)
    if isinstance(auth, tuple):
        if len(auth) != 2:
            raise ConfigError("HTTPConfig(auth=...) as a tuple is (user, password)")
        user, password = auth
        return user, SecretStr(password) if isinstance(password, str) else password
    if auth is None or isinstance(auth, SecretStr) or callable(auth):
        return auth
    raise ConfigError(f"HTTPConfig(auth=...) is a tuple, a token or a function that returns one, not {type(auth)}")


def _base_headers(headers: Mapping[str, str], auth: Auth) -> dict[str, str]:
    merged = {name: value for name, value in DEFAULT_HEADERS.items() if name.lower() not in map(str.lower, headers)}
    if isinstance(auth, SecretStr):
        merged["Authorization"] = authorization(auth.get_secret_value())
    elif isinstance(auth, tuple):
        user, password = auth
        secret = password.get_secret_value() if isinstance(password, SecretStr) else password
        merged["Authorization"] = f"Basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}"
    merged.update(headers)
    return merged


def beyond_default(headers: Mapping[str, str]) -> dict[str, str] | None:
    """Return those of ``headers`` that not every request has."""
    return {name: value for name, value in headers.items() if DEFAULT_HEADERS.get(name) != value} or None


def require_method(method: str) -> None:
    """Raise ``ConfigError`` for a method that would be more than a method in the request's first line."""
    if not _TOKEN.fullmatch(method):
        raise ConfigError(f"{method!r} is no method (RFC 9110, section 9.1); it comes before the path")


def require_sendable(headers: Mapping[str, str]) -> None:
    """Raise ``ConfigError`` for a header that would end its line and begin another one, or is not ASCII.

    The libraries would refuse most of these too, in messages that show the value.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ConfigError(f"{name!r} is no header's name (RFC 9110, section 5.1)")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ConfigError(
                f"the value of the header {name} (not shown) is no text, or has a line end, another control character "
                "or one beyond ASCII; strip a token that was read from a file, percent-encode a text"
            )


def authorization(token: str) -> str:
    """Return the value of the ``Authorization`` header: ``token`` as a bearer, or with the scheme it names."""
    return token if " " in token else f"Bearer {token}"


def _paths(cert: Path | tuple[Path, Path] | None) -> str | tuple[str, str] | None:
    if cert is None:
        return None
    return (os.fspath(cert[0]), os.fspath(cert[1])) if isinstance(cert, tuple) else os.fspath(cert)
