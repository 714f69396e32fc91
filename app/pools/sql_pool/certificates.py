"""Certificates of TLS: found, or missed, before a driver looks for them, each of which does so differently."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from app.pools.errors import ConfigError

if TYPE_CHECKING:
    from app.pools.sql_pool.config import DatabaseConfig

SYSTEM = "system"
"""What ``sslrootcert`` is for the authorities that the operating system trusts."""


def root_certificate(config: DatabaseConfig) -> str | None:
    """Return the file of the authorities that a config trusts, ``SYSTEM``, or ``None`` if the server's is not checked.

    Unless it is named it is what PostgreSQL's own programs use: ``PGSSLROOTCERT`` of the environment, or
    ``~/.postgresql/root.crt`` if there is one.

    Raises:
        ConfigError: a file that the config names cannot be read, or it checks the server's certificate against none.
    """
    if config.sslmode == "disable" or _is_socket(config):
        return None
    for option in ("sslrootcert", "sslcert", "sslkey"):
        _require_readable(option, getattr(config, option))
    named = config.sslrootcert or os.environ.get("PGSSLROOTCERT")
    if named:
        return named
    with suppress(RuntimeError):  # there is no home
        usual = Path.home() / ".postgresql" / "root.crt"
        if usual.exists():
            return str(usual)
    if config.sslmode in ("verify-ca", "verify-full"):
        raise ConfigError(
            f"sslmode={config.sslmode!r} needs sslrootcert: the file of the certificate authority, or {SYSTEM!r} for "
            "those that the operating system trusts (with sslmode='verify-full')"
        )
    return None


def require_client_certificate(config: DatabaseConfig) -> None:
    """Raise ``ConfigError`` for a client's certificate that cannot be used.

    libpq says so only if it comes to use it, and goes without TLS first, or instead, in the modes that allow that.
    """
    root = root_certificate(config)
    if config.sslcert is None or config.sslmode == "disable" or _is_socket(config):
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with _named(root, config):
        if config.sslkey is None:  # libpq has a usual place for it
            context.load_verify_locations(config.sslcert)
        else:
            _load_client_certificate(context, config)


def asyncpg_ssl(config: DatabaseConfig) -> Any:
    """Return what asyncpg takes as ``ssl``, which names certificates only through a context.

    Raises:
        ConfigError: as ``root_certificate``, or a file is not what it should be.
    """
    if _is_socket(config):
        return False
    if config.sslmode in ("disable", "allow", "prefer"):
        root_certificate(config)  # raises, as psycopg's does, although neither mode checks the server's
        if asyncpg_dsn(config) is not None:
            _tls_context(config)  # raises, too
        return config.sslmode
    return _tls_context(config)


def asyncpg_dsn(config: DatabaseConfig) -> str | None:
    """Return the URL by which asyncpg takes a client's certificate in the modes that go without TLS if need be.

    Given a context, it would insist on TLS.
    """
    if config.sslcert is None or _is_socket(config) or config.sslmode not in ("allow", "prefer"):
        return None
    files = {"sslcert": config.sslcert} | ({} if config.sslkey is None else {"sslkey": config.sslkey})
    return f"postgresql://?{urlencode(files)}"


def _tls_context(config: DatabaseConfig) -> ssl.SSLContext:
    """Return the context for a connection that is encrypted in any case, as libpq would make it."""
    root = root_certificate(config)
    with _named(root, config):
        context = ssl.create_default_context(cafile=None if root == SYSTEM else root)
        context.check_hostname = config.sslmode == "verify-full"
        if root is None:
            context.verify_mode = ssl.CERT_NONE  # as libpq: encrypted, to whomever
        if config.sslcert is not None:
            _load_client_certificate(context, config)
    return context


def _load_client_certificate(context: ssl.SSLContext, config: DatabaseConfig) -> None:
    context.load_cert_chain(config.sslcert or "", config.sslkey, password=_no_passphrase)


def _no_passphrase() -> str:
    """Give none to a key that has one: OpenSSL would ask the terminal, and the event loop would stand still."""
    raise ConfigError("the key has a passphrase, which nobody is asked for; store it without one")


@contextmanager
def _named(root: str | None, config: DatabaseConfig) -> Iterator[None]:
    """Turn a failure to load files into one that names them."""
    try:
        yield
    except (OSError, ValueError) as error:  # of which ssl's own is a kind
        raise ConfigError(
            f"the certificates cannot be used: {error}; sslrootcert={root!r}, sslcert={config.sslcert!r} and "
            f"sslkey={config.sslkey!r} must be PEM files"
        ) from error


def _is_socket(config: DatabaseConfig) -> bool:
    """Say whether a config's server is reached by a unix socket, which knows no TLS."""
    return (config.host or "").startswith("/")


def _require_readable(option: str, file: str | None) -> None:
    if file is None or (option == "sslrootcert" and file == SYSTEM):
        return
    if not (os.path.isfile(file) and os.access(file, os.R_OK)):
        advice = f", or write {SYSTEM!r} for the authorities of the operating system" if option == "sslrootcert" else ""
        raise ConfigError(f"{option}={file!r} is no file that can be read; correct the path{advice}")
