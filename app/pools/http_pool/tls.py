"""TLS contexts, one for each set of TLS settings: loading a bundle of authorities costs 18 ms each time."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from typing import TypeAlias

import certifi

from app.pools.errors import ConfigError
from app.pools.http_pool.config import HTTPConfig

TLSKey: TypeAlias = "tuple[bool, str | None, str | tuple[str, str] | None]"


def tls_key(config: HTTPConfig) -> TLSKey:
    """Return what decides which certificates are trusted and shown."""
    ca = config.ca_file
    if ca is None and config.trust_env:
        ca = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return config.verify, ca, config.cert_files


def without_certificate(key: TLSKey) -> TLSKey:
    """Return the key for an origin that must not see the client's certificate."""
    verify, ca, _ = key
    return verify, ca, None


class Contexts:
    """The ``SSLContext`` of each TLS key, made once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[TLSKey, ssl.SSLContext] = {}

    def get(self, key: TLSKey) -> ssl.SSLContext:
        """Return the context of ``key``.

        Raises:
            ConfigError: a certificate file cannot be loaded.
        """
        context = self._made.get(key)
        if context is None:
            with self._lock:
                context = self._made.get(key)
                if context is None:
                    context = self._made[key] = _make(key)
        return context

    async def prepare(self, key: TLSKey) -> None:
        """Make the context of ``key`` without blocking the event loop."""
        if key not in self._made:
            await asyncio.to_thread(self.get, key)

    def forget_after_fork(self) -> None:
        """Replace the lock; the contexts themselves hold no connection."""
        self._lock = threading.Lock()


def _make(key: TLSKey) -> ssl.SSLContext:
    verify, ca, cert = key
    authorities = ca if ca is not None else certifi.where()
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"HTTPConfig(ca={authorities!r}) cannot be loaded: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert is not None:
        certificate, private_key = cert if isinstance(cert, tuple) else (cert, None)
        try:
            context.load_cert_chain(certificate, private_key, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"HTTPConfig(cert={cert!r}) cannot be loaded: {error}") from error
    return context


def _no_password() -> str:
    raise ConfigError("HTTPConfig(cert=...): the key is encrypted; give an unencrypted key file")
