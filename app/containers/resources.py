"""Named resources: the databases, APIs, peers, publishers and sockets that a deployment configures by name.

They are read from ``poolwire.toml``, ``.env`` and the environment (``POOLWIRE_DATABASES__LIBRARY__URL``)::

    [databases.library]
    url = "sqlite:///library.db"

    [apis.llm]
    base_url = "http://127.0.0.1:8080"

    [peers.scribe]
    endpoint = "tcp://127.0.0.1:5555"

Every further key of such a table is an option of the configuration class behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, ClassVar

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from app.pools.core.booleans import read_booleans
from app.pools.core.settings import HTTPPoolSettings, SQLPoolSettings, ZMQPoolSettings, config_file, read_config_file
from app.pools.errors import ConfigError
from app.pools.http_pool import HTTPConfig
from app.pools.sql_pool import DatabaseConfig
from app.pools.zmq_pool import SocketConfig, SocketType


class Resources(BaseSettings):
    """What is configured by name. A value is a configuration object, or a mapping of its fields.

    Args:
        databases: ``DatabaseConfig`` objects, or mappings with ``url``.
        apis: ``HTTPConfig`` objects, or mappings with ``base_url``.
        peers: ``SocketConfig`` objects of type REQ, or mappings with ``endpoint``.
        publishers: ``SocketConfig`` objects of type PUB or PUSH, or mappings with ``endpoint``; PUB binds and
            PUSH connects unless ``bind`` says otherwise.
        sockets: ``SocketConfig`` objects of any type, or mappings with ``type`` and ``endpoint``.

    Raises:
        ConfigError: a file or a value cannot be read; the message names it.
    """

    model_config = SettingsConfigDict(
        env_prefix="POOLWIRE_",
        env_nested_delimiter="__",
        env_file=".env",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    databases: dict[str, Any] = Field(default_factory=dict)
    apis: dict[str, Any] = Field(default_factory=dict)
    peers: dict[str, Any] = Field(default_factory=dict)
    publishers: dict[str, Any] = Field(default_factory=dict)
    sockets: dict[str, Any] = Field(default_factory=dict)

    kinds: ClassVar[tuple[str, ...]] = ("databases", "apis", "peers", "publishers", "sockets")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ConfigError:
            raise
        except (SettingsError, ValueError) as error:
            raise ConfigError(f"the named resources cannot be read: {error}") from None
        self._refuse_unknown_tables()
        self._refuse_what_is_no_table()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put ``poolwire.toml`` below the environment and ``.env``, and leave out whichever says nothing."""
        named = {kind: table for kind, table in read_config_file().items() if kind in cls.kinds}
        file = InitSettingsSource(settings_cls, init_kwargs=named)
        prefix = str(cls.model_config["env_prefix"]).lower()
        variables = [
            source
            for source in (env_settings, dotenv_settings)
            if not isinstance(source, EnvSettingsSource) or any(name.startswith(prefix) for name in source.env_vars)
        ]
        return init_settings, *variables, file

    def __repr_args__(self) -> Iterator[tuple[str, object]]:
        """Show names only: an address may carry a password."""
        for kind in self.kinds:
            yield kind, sorted(getattr(self, kind))

    def _refuse_unknown_tables(self) -> None:
        pools = (ZMQPoolSettings.table, SQLPoolSettings.table, HTTPPoolSettings.table)
        known = [*self.kinds, *pools]
        for table in read_config_file():
            if table not in known:
                near = get_close_matches(table, known, n=1)
                hint = f"did you mean [{near[0]}]?" if near else f"known are {', '.join(known)}"
                raise ConfigError(f"{config_file()}: [{table}] is not a table of poolwire; {hint}")

    def _refuse_what_is_no_table(self) -> None:
        for kind in self.kinds:
            for name, value in getattr(self, kind).items():
                if not isinstance(value, (Mapping, _CLASSES[kind])):  # not shown: it may be a URL, password and all
                    raise ConfigError(
                        f"[{kind}.{name}] is no table, but {type(value).__name__}; {how_to_configure(kind, name)}; a "
                        f"variable names the option, too: POOLWIRE_{kind.upper()}__{name.upper()}__..."
                    )

    def config(self, kind: str, name: str) -> Any:
        """Return the configuration object of one resource.

        Args:
            kind: one of ``Resources.kinds``.
            name: the resource's name.

        Raises:
            KeyError: there is no such name.
            ConfigError: its options are wrong; the message names the table and the option.
        """
        value = getattr(self, kind)[name]
        if not isinstance(value, Mapping):
            return value
        try:
            return _BUILDERS[kind](_with_texts(_CLASSES[kind], read_booleans(_CLASSES[kind], dict(value))))
        except KeyError as missing:
            raise ConfigError(f"[{kind}.{name}] has no {missing.args[0]!r}; add it to {config_file()}") from None
        except (TypeError, ValueError) as error:
            raise ConfigError(f"[{kind}.{name}] in {config_file()}: {error}") from None


def _with_texts(configuration: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return values for the fields of a dataclass, with the whole numbers for its texts as such.

    A variable's value is read as JSON, so that a password of digits alone is a number. No zeros are lost: in JSON a
    number does not begin with one.
    """
    texts = {each.name for each in fields(configuration) if each.type in _TEXTS}
    return {
        name: str(value) if name in texts and isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in values.items()
    }


def how_to_configure(kind: str, name: str) -> str:
    """Return what to do to have a resource of this kind and name."""
    return f"add [{kind}.{name}] with {_REQUIRED[kind]} to {config_file()}, or give it to Resources({kind}=...)"


_TEXTS = {"str", "str | None", "SecretStr | None", "str | SecretStr | None"}
_REQUIRED = {
    "databases": "a `url`",
    "apis": "a `base_url`",
    "peers": "an `endpoint`",
    "publishers": "an `endpoint`",
    "sockets": "a `type` and an `endpoint`",
}


def _database(fields: dict[str, Any]) -> DatabaseConfig:
    return DatabaseConfig.from_url(fields.pop("url"), **fields)


def _api(fields: dict[str, Any]) -> HTTPConfig:
    return HTTPConfig(fields.pop("base_url"), **fields)


def _peer(fields: dict[str, Any]) -> SocketConfig:
    return SocketConfig(SocketType.REQ, fields.pop("endpoint"), **fields)


def _publisher(fields: dict[str, Any]) -> SocketConfig:
    kind = fields.pop("type", "PUB")
    bind = fields.pop("bind", kind == "PUB")
    return SocketConfig(kind, fields.pop("endpoint"), bind=bind, **fields)


def _socket(fields: dict[str, Any]) -> SocketConfig:
    return SocketConfig(fields.pop("type"), fields.pop("endpoint"), **fields)


_CLASSES: dict[str, type[Any]] = {
    "databases": DatabaseConfig,
    "apis": HTTPConfig,
    "peers": SocketConfig,
    "publishers": SocketConfig,
    "sockets": SocketConfig,
}
_BUILDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "databases": _database,
    "apis": _api,
    "peers": _peer,
    "publishers": _publisher,
    "sockets": _socket,
}
