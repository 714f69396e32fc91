"""URLs: a base that is checked once, and paths that cannot leave it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, unquote, urlencode

from yarl import URL

from app.pools.core.redaction import redact_url
from app.pools.errors import InvalidURL

Params: TypeAlias = "Mapping[str, object] | Iterable[tuple[str, object]]"

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|//|\\")
_SAFE = "!$&'()*+,;=:@/?-._~%"
_CLEAN = re.compile(r"[A-Za-z0-9" + re.escape(_SAFE) + r"]*\Z")
_SEPARATORS = re.compile(r"[/\\]")
# A last label that is a number makes a host an IPv4 address (WHATWG URL, section 3.5), in spellings such as
# 2130706433 or 0x7f.1 that a filter may not see through.
_DISGUISED_IPV4 = re.compile(r"(^|\.)(0x[0-9a-f]*|[0-9]+)\.?$", re.IGNORECASE)
_IPV4 = re.compile(r"(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]{0,2})){3}$")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """Where one request goes: an origin, and the path with its query as it is sent."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """The scheme, host and port, the last only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"

    def at_root(self) -> Target:
        """Return the same origin without a path."""
        return Target(self.scheme, self.host, self.port, "")


def parse_base(base_url: str) -> Target:
    """Return the parts of a base URL.

    Raises:
        InvalidURL: it is not http or https, has no host, or carries credentials, a query or a fragment. The
            message shows neither.
    """
    try:
        url = URL(base_url)
        port = url.port
    except (ValueError, TypeError):
        raise InvalidURL("base_url cannot be parsed as a URL; write it like https://api.example.com/v1") from None
    shown = redact_url(base_url)
    if url.scheme not in _DEFAULT_PORTS or not url.raw_host or port is None:
        raise InvalidURL(f"base_url {shown!r} needs http:// or https:// and a host, like https://api.example.com/v1")
    if url.raw_user is not None or url.raw_password is not None:
        raise InvalidURL(f"base_url {shown!r} carries credentials; give them as HTTPConfig(auth=(user, password))")
    if url.raw_query_string or url.raw_fragment:
        raise InvalidURL(f"base_url {shown!r} has a query or a fragment; give params= with each request instead")
    if ":" not in url.raw_host and _DISGUISED_IPV4.search(url.raw_host) and not _IPV4.match(url.raw_host):
        raise InvalidURL(f"base_url {shown!r} has a number for a host; write an IPv4 address as four decimals")
    _refuse_dot_dot(base_url.split("://", 1)[1])
    return Target(url.scheme, url.raw_host.rstrip("."), port, url.raw_path.rstrip("/"))


def is_of(target: Target, address: str) -> bool:
    """Say whether an absolute URL belongs to the origin of ``target``."""
    try:
        url = URL(address)
        return (url.scheme, url.raw_host, url.port) == (target.scheme, target.host, target.port)
    except ValueError:
        return False


def join(base: Target, path: str, params: Params | None = None) -> str:
    """Return ``path`` below the base's path, with ``params`` added to its query, ready to be sent.

    Values of ``params`` that are ``None`` are left out; lists and tuples repeat their name.

    Raises:
        InvalidURL: the path is a URL of its own (``https:``, ``//``), has a ``..`` segment, plain or
            percent-encoded, or a fragment.
    """
    if _ABSOLUTE.match(path):
        raise InvalidURL(
            f"{redact_url(path)!r} is not a path below {base.origin}{base.path}; make an HTTPConfig for another origin"
        )
    if "#" in path:
        raise InvalidURL("a path has no fragment, which is never sent; write %23 for a # that belongs to the path")
    if "." in path or "%" in path:
        _refuse_dot_dot(path.partition("?")[0])
    if not _CLEAN.match(path):
        path = quote(path, safe=_SAFE)
    joined = base.path + path if path[:1] in ("/", "?", "") else f"{base.path}/{path}"
    if joined[:1] != "/":
        joined = f"/{joined}"
    if params:
        joined += ("&" if "?" in joined else "?") + encode_params(params)
    return joined


def encode_params(params: Params) -> str:
    """Return a query string, or a form's body, without its ``None`` values."""
    pairs = params.items() if isinstance(params, Mapping) else params
    return urlencode([(name, value) for name, value in pairs if value is not None], doseq=True)


def _refuse_dot_dot(path: str) -> None:
    if ".." in _SEPARATORS.split(unquote(path)):
        raise InvalidURL("a path must not contain '..', plain or percent-encoded: it would leave the base URL")
