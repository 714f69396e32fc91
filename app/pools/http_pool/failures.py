"""What the libraries' errors mean, in words that hold no secret."""

from __future__ import annotations

import errno
import ssl

import aiohttp

from app.pools.errors import MORE_DESCRIPTORS, MORE_THREADS, BlockedAddress, HTTPUnavailable, UntrustedServer
from app.pools.http_pool.addresses import NotPublic
from app.pools.http_pool.bodies import own_error
from app.pools.http_pool.calls import Call, Failure
from app.pools.http_pool.decoding import Undecodable


class NoThread(OSError):
    """A thread that an attempt needs cannot be started, which passes. No request was sent."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__(f"{error}. {MORE_THREADS}")


def failed(error: Exception, call: Call, *, sent: bool) -> Failure:
    """Return what ``error`` means for ``call``.

    Raises:
        Exception: the error of the caller's own body, which is nobody else's fault.
    """
    own = own_error(call.body)
    if own is not None:
        raise own from None
    return describe(error, sent=sent)


def describe(error: Exception, *, sent: bool) -> Failure:
    """Return what ``error`` of requests, urllib3, aiohttp or the operating system means.

    The libraries' errors hold the request's headers and URL; only the operating system's is kept as the cause.
    """
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        inner = error.certificate_error
    # aiohttp may have tried several addresses and joined what it got from each into one text.
    blocked = isinstance(inner, NotPublic) or "is not a public address" in str(inner)
    untrusted = isinstance(inner, ssl.SSLCertVerificationError | ssl.CertificateError)
    plain = isinstance(inner, OSError) and not isinstance(inner, aiohttp.ClientError)
    undecodable = isinstance(error, Undecodable)
    starved = plain and getattr(inner, "errno", None) in (errno.EMFILE, errno.ENFILE)
    said = f"{inner}. {MORE_DESCRIPTORS}" if starved else str(inner)
    name = "NameResolutionError" if isinstance(error, aiohttp.ClientConnectorDNSError) else type(inner).__name__
    return Failure(
        reason=str(error) if undecodable else f"{name}: {said}" if plain and said else name,
        sent=sent,
        ours=starved or isinstance(inner, NoThread),
        permanent=blocked or untrusted or undecodable or isinstance(inner, aiohttp.InvalidURL),
        cause=inner.with_traceback(None) if plain else None,
        kind=BlockedAddress if blocked else UntrustedServer if untrusted else HTTPUnavailable,
    )
