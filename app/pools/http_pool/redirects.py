"""Redirects: where one leads, what is sent there, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from yarl import URL

from app.pools.core.redaction import redact_url
from app.pools.errors import InvalidURL
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.urls import Target

REDIRECTS = frozenset({301, 302, 303, 307, 308})

# What another origin may see of a request. Everything else may be a secret, whatever its name.
HARMLESS_HEADERS = frozenset(
    {"accept", "accept-encoding", "accept-language", "content-encoding", "content-type", "user-agent"}
)
_ABOUT_THE_BODY = frozenset(
    {"content-encoding", "content-language", "content-length", "content-location", "content-type", "transfer-encoding"}
)


@dataclass(frozen=True, slots=True)
class Hop:
    """The request that follows a redirect."""

    target: Target
    method: str
    keeps_body: bool


def follow(url: str, method: str, status: int, location: str) -> Hop:
    """Return what a redirect of ``url`` asks for (RFC 9110, section 15.4).

    303 turns every method but HEAD into GET; 301 and 302 turn POST into GET, as every client does; 307 and 308
    repeat the request as it was.

    Raises:
        InvalidURL: the location is not an http(s) URL.
    """
    try:
        address = URL(url, encoded=True).join(URL(location))
        port = address.port
    except (ValueError, TypeError):
        raise InvalidURL(f"{redact_url(url)} redirects to what is no URL") from None
    if address.scheme not in ("http", "https") or not address.raw_host or port is None:
        raise InvalidURL(f"{redact_url(url)} redirects to {redact_url(location)!r}, which is neither http nor https")
    target = Target(address.scheme, address.raw_host.rstrip("."), port, address.raw_path_qs or "/")
    becomes_get = (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST")
    return Hop(target, "GET" if becomes_get else method, keeps_body=not becomes_get)


def without_body(headers: Mapping[str, str]) -> dict[str, str]:
    """Return ``headers`` without those that describe a body."""
    return {name: value for name, value in headers.items() if name.lower() not in _ABOUT_THE_BODY}


def harmless(headers: Mapping[str, str], besides: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return those of ``headers`` that another origin may see, and those named ``besides``."""
    kept = HARMLESS_HEADERS | besides
    return {name: value for name, value in headers.items() if name.lower() in kept}


def stranger(config: HTTPConfig, target: Target) -> HTTPConfig:
    """Return the configuration for another origin: as patient and as careful, and with nothing to prove who calls."""
    return replace(config, base_url=target.origin, headers={}, auth=None, cert=None, rate_limit=None)
