"""Which database, and how to connect to it: the key of its connections."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import SecretStr
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.pools.core.allowed import require
from app.pools.core.booleans import boolean, require_booleans
from app.pools.core.keys import pickled_by_fields
from app.pools.errors import ConfigError
from app.pools.sql_pool.certificates import SYSTEM

Backend = Literal["sqlite", "postgresql"]
TLSMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
JournalMode = Literal["WAL", "DELETE", "TRUNCATE", "MEMORY"]
Synchronous = Literal["OFF", "NORMAL", "FULL", "EXTRA"]

MEMORY = ":memory:"
_FILES = ("sslrootcert", "sslcert", "sslkey")
_LONGEST = (2**31 - 1) / 1000
"""Seconds: what PostgreSQL and SQLite take as a time, 24 days."""
_TIME = f"seconds above 0, at most {int(_LONGEST)}"
_ONE_OF = {"backend": Backend, "sslmode": TLSMode, "journal_mode": JournalMode, "synchronous": Synchronous}
_SQLITE_ONLY = frozenset({"readonly", "busy_timeout", "foreign_keys", "journal_mode", "synchronous"})
_SQLITE_OPTIONS = _SQLITE_ONLY | {"application_name", "database"}


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """A database and how to connect to it. Immutable and hashable: equal configs share connections.

    Every field belongs to the key, the password too, so that nobody gets a connection that was opened with
    other credentials. Made by ``get_sqlite_config``, ``get_postgresql_config`` or ``from_url``.

    Raises:
        ConfigError: a value is not allowed; the message names it.
    """

    backend: Backend
    database: str
    """The database's name; for SQLite the absolute path of its file, or ``:memory:``."""
    host: str | None = None
    """A host name, an address, or the folder of a unix socket."""
    port: int | None = None
    username: str | None = None
    password: SecretStr | None = None
    application_name: str = "poolwire"
    """What PostgreSQL shows in ``pg_stat_activity``; for ``:memory:``, the name that tells databases apart."""
    connect_timeout: float = 5.0
    """Seconds that one attempt to connect may take."""
    statement_timeout: float | None = None
    """Seconds after which PostgreSQL itself ends a statement, whoever sent it."""
    prepared: bool = True
    """Whether the drivers may prepare statements on the server; ``False`` behind PgBouncer."""
    sslmode: TLSMode = "prefer"
    """What PostgreSQL's clients call it; ``verify-full`` is the one that keeps an attacker out."""
    sslrootcert: str | None = None
    """The file of the authorities that are trusted, or ``system`` for those of the operating system."""
    sslcert: str | None = None
    sslkey: str | None = None
    readonly: bool = False
    """Open the SQLite file only for reading."""
    busy_timeout: float = 5.0
    """Seconds that a SQLite statement waits for the locks of others."""
    foreign_keys: bool = True
    journal_mode: JournalMode = "WAL"
    synchronous: Synchronous = "NORMAL"
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        for name in _FILES:
            file = getattr(self, name)
            object.__setattr__(self, name, os.fspath(file) if isinstance(file, os.PathLike) else file)
        require_booleans(self)
        self._check_texts()
        self._check_numbers()
        root, mode = self.sslrootcert, self.sslmode
        require("sslmode", mode, root != SYSTEM or mode == "verify-full", f"'verify-full' with sslrootcert={SYSTEM!r}")
        object.__setattr__(self, "password", _secret(self.password))
        key = tuple(getattr(self, each.name) for each in fields(self) if each.compare)
        # Computed once: a config is looked up at each query.
        object.__setattr__(self, "_hash", hash(key))

    def _check_texts(self) -> None:
        for name, allowed in _ONE_OF.items():
            value = getattr(self, name)
            require(name, value, value in get_args(allowed), " or ".join(get_args(allowed)))
        require("database", self.database, _is_text(self.database, self.backend), "a name or a path")
        require("application_name", self.application_name, _is_text(self.application_name or "-"), "a text")
        for name in ("host", "username", *_FILES):
            value = getattr(self, name)
            require(name, value, value is None or _is_text(value), "a text, or None")
        require("readonly", self.readonly, not (self.readonly and self.in_memory), f"False for {MEMORY!r}")

    def _check_numbers(self) -> None:
        port = self.port
        known = port is None or (isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536)
        require("port", port, known, "an int, 1 to 65535")
        for name in ("connect_timeout", "busy_timeout"):
            require(name, getattr(self, name), _is_time(getattr(self, name)), _TIME)
        limit = self.statement_timeout
        require("statement_timeout", limit, limit is None or _is_time(limit), f"{_TIME}, or None for no limit")

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return pickled_by_fields(self)

    @classmethod
    def from_url(cls, url: str | URL, **options: Any) -> DatabaseConfig:
        """Return the config of a database URL.

        Args:
            url: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite://`` for memory, or
                ``postgresql://user:password@host:port/database?sslmode=require``. A driver in the scheme
                (``postgresql+asyncpg``) is ignored: the pool chooses it. The query may set any field.
            options: further fields, which win over the query.

        Raises:
            ConfigError: the URL is none, names an unknown database or option, or has a bare ``@`` in its password.
        """
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            raise ConfigError(
                "the database URL cannot be read; write sqlite:///file.db or postgresql://user:password@host/name "
                "and percent-encode special characters of the password"
            ) from None  # SQLAlchemy's message quotes the whole URL, password and all
        if parsed.get_backend_name() != "sqlite" and _without_query(str(url), parsed).count("@") > 1:
            raise ConfigError(
                "the database URL has an @ too many: percent-encode it in the user, the password and the query, as %40"
            )
        values = {**_typed(parsed.query), **options}
        backend = parsed.get_backend_name()
        if backend == "sqlite":
            _refuse_unknown("sqlite", values, _SQLITE_OPTIONS)
            if parsed.host is not None:
                raise ConfigError(
                    f"the database URL names the host {parsed.host!r}, and SQLite has none; write sqlite:///library.db "
                    "for a file in the working folder, sqlite:////var/library.db for an absolute path"
                )
            return get_sqlite_config(parsed.database or MEMORY, **values)
        if backend in ("postgresql", "postgres"):
            return get_postgresql_config(
                **{
                    "host": parsed.host or "localhost",
                    "port": parsed.port or 5432,
                    "database": parsed.database or parsed.username or "postgres",
                    "username": parsed.username,
                    "password": parsed.password,
                    **values,
                }
            )
        raise ConfigError(f"the database URL names {backend!r}; allowed are sqlite and postgresql")

    @property
    def statement_milliseconds(self) -> int | None:
        """``statement_timeout`` as PostgreSQL wants it; never 0, which would be none."""
        return None if self.statement_timeout is None else math.ceil(self.statement_timeout * 1000)

    @property
    def in_memory(self) -> bool:
        """Whether this is SQLite's ``:memory:``, which the pool makes one database for all its connections."""
        return self.backend == "sqlite" and self.database == MEMORY

    @property
    def label(self) -> str:
        """The database's name in errors, logs and statistics: no secret, and no user name."""
        if self.backend == "sqlite":
            return f"sqlite:{self.database}"
        return f"postgresql://{self.host}:{self.port}/{self.database}"


def get_sqlite_config(path: str | bytes | os.PathLike[str], **options: Any) -> DatabaseConfig:
    """Return the config of a SQLite file.

    Args:
        path: the file, made when it does not exist; ``:memory:`` for a database that lives as long as the pool
            and is the same for all its threads and tasks.
        options: ``readonly``, ``busy_timeout`` (seconds), ``foreign_keys``, ``journal_mode``, ``synchronous``,
            ``application_name``.

    Raises:
        ConfigError: an option is unknown or its value not allowed.
    """
    name = os.fsdecode(path)
    require("path", name, bool(name), f"a file, or {MEMORY!r}")
    database = name if name == MEMORY else str(Path(name).expanduser().absolute())
    return _config("sqlite", {"database": database, **options}, _SQLITE_OPTIONS)


def get_postgresql_config(
    host: str = "localhost",
    port: int = 5432,
    database: str = "postgres",
    username: str | None = None,
    password: str | SecretStr | None = None,
    **options: Any,
) -> DatabaseConfig:
    """Return the config of a PostgreSQL database.

    Args:
        host: a name, an address, or the folder of the server's unix socket.
        port: the TCP port, also part of the socket's name.
        database: the database's name.
        username: who connects.
        password: any characters; kept as a secret that is never shown.
        options: ``application_name``, ``connect_timeout`` and ``statement_timeout`` (seconds), ``prepared``,
            ``sslmode``, ``sslrootcert``, ``sslcert``, ``sslkey``.

    Raises:
        ConfigError: an option is unknown or its value not allowed.
    """
    values = {"host": host, "port": port, "database": database, "username": username, "password": password, **options}
    allowed = {each.name for each in fields(DatabaseConfig) if each.init} - _SQLITE_ONLY - {"backend"}
    return _config("postgresql", values, allowed)


def _config(backend: Backend, values: dict[str, Any], allowed: set[str] | frozenset[str]) -> DatabaseConfig:
    _refuse_unknown(backend, values, allowed)
    return DatabaseConfig(backend=backend, **values)


def _refuse_unknown(backend: Backend, values: dict[str, Any], allowed: set[str] | frozenset[str]) -> None:
    unknown = sorted(values.keys() - allowed)
    if unknown:
        raise ConfigError(f"{backend} has no option {', '.join(unknown)}; allowed are {', '.join(sorted(allowed))}")


def _secret(password: object) -> SecretStr | None:
    """Return a password as one that is never shown, however it came to the config."""
    if password is None or isinstance(password, SecretStr):
        return password
    if isinstance(password, str):
        return SecretStr(password)
    raise ConfigError(f"the password must be a str or a SecretStr, not {type(password).__name__}")


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LONGEST


def _is_text(value: object, backend: Backend = "postgresql") -> bool:
    """Say whether a value is a text that has a letter, and that the libraries in C and PostgreSQL take as it is."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    # A file's name may have bytes that are no UTF-8, which Python writes as surrogates.
    return backend == "sqlite" or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _without_query(text: str, url: URL) -> str:
    """Return a URL's text without its query, if that is surely none and no part of a password: it has options alone."""
    before, _, _ = text.rpartition("?")
    is_query = "/" in before.rpartition("@")[2] and url.query.keys() <= {each.name for each in fields(DatabaseConfig)}
    return before if is_query else text


def _typed(query: Mapping[str, object]) -> dict[str, Any]:
    """Return a URL's query with each value as the type of the field that it sets."""
    types = {each.name: str(each.type) for each in fields(DatabaseConfig)}
    repeated = [name for name, value in query.items() if not isinstance(value, str)]
    if repeated:
        raise ConfigError(f"the database URL says {', '.join(repeated)} more than once")
    return {name: _parse(name, str(value), types.get(name, "str")) for name, value in query.items()}


def _parse(name: str, text: str, kind: str) -> object:
    try:
        if kind == "bool":
            return boolean(text)
        if kind.startswith("float"):
            return float(text)
        return int(text) if kind.startswith("int") else text
    except ValueError:
        raise ConfigError(f"{name}={text!r} in the database URL is not a {kind.split()[0]}") from None
