"""Settings of the pools, from the environment, ``.env`` and ``poolwire.toml``, in that order of precedence."""

from __future__ import annotations

import os
import resource
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.pools.errors import ConfigError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrOff = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=100_000)]

CONFIG_FILE_VARIABLE = "POOLWIRE_CONFIG"


def config_file() -> Path:
    """Return the configuration file: what ``POOLWIRE_CONFIG`` names, else ``poolwire.toml`` in the folder."""
    return Path(os.environ.get(CONFIG_FILE_VARIABLE, "poolwire.toml"))


def read_config_file() -> dict[str, Any]:
    """Return the tables of the configuration file; none if there is no such file.

    Raises:
        ConfigError: ``POOLWIRE_CONFIG`` names a file that is not there, or the file cannot be read as TOML.
    """
    file = config_file()
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if CONFIG_FILE_VARIABLE in os.environ:
            raise ConfigError(f"{CONFIG_FILE_VARIABLE}={file}: there is no such file; correct or unset it") from None
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


class PoolSettings(BaseSettings):
    """The base of each pool's settings. A bad value raises ``ConfigError`` that names the variable.

    A subclass names its table in ``poolwire.toml`` with ``table`` and its environment prefix in
    ``model_config``.
    """

    table: ClassVar[str]
    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    leak_threshold: SecondsOrOff = 60.0
    """A lease held longer than this many seconds is logged once, with its checkout's stack; 0 turns it off."""

    def __init__(self, **values: Any) -> None:
        self._require_known(values, type(self).__name__)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(self._explain(error)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put ``[table]`` of ``poolwire.toml`` below the environment and ``.env``."""
        values = read_config_file().get(cls.table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{config_file()}: {cls.table}={values!r} is not a table; write [{cls.table}]")
        cls._require_known(values, f"[{cls.table}] of {config_file()}")
        table = InitSettingsSource(settings_cls, init_kwargs=values)
        return init_settings, env_settings, dotenv_settings, table

    @classmethod
    def _require_known(cls, names: Iterable[str], where: str) -> None:
        for name in names:
            if name not in cls.model_fields and not name.startswith("_"):  # those are of pydantic-settings
                near = get_close_matches(name.lower(), cls.model_fields, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(cls.model_fields)}"
                raise ConfigError(f"{where} has no setting {name!r}; {hint}")

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        prefix = cls.model_config["env_prefix"]
        complaints = []
        for detail in error.errors():
            name = str(detail["loc"][0]) if detail["loc"] else cls.__name__
            complaints.append(f"{prefix}{name.upper()}={detail['input']!r}: {detail['msg']}")
        allowed = f"Set it in the environment, .env or [{cls.table}] of {config_file()}"
        return f"{'; '.join(complaints)}. {allowed}"


def _affordable_sockets() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A connected socket takes two descriptors, and closed ones keep theirs for a while.
    return 4096 if soft == resource.RLIM_INFINITY else min(4096, max(64, soft // 8))


class ZMQPoolSettings(PoolSettings):
    """Settings of the ZMQ pool: ``ZMQ_POOL_*``, or ``[zmq_pool]`` in ``poolwire.toml``."""

    table = "zmq_pool"
    model_config = SettingsConfigDict(env_prefix="ZMQ_POOL_")

    max_connections: Count = 50
    """Sockets per configuration key, at most."""
    max_total_connections: Count = Field(default_factory=_affordable_sockets)
    """Sockets of all keys together, at most, those that are kept included; by default an eighth of the descriptors."""
    max_idle_time: Seconds = 300.0
    """Seconds after which an idle socket is closed."""
    health_check_interval: Seconds = 60.0
    """Seconds between two rounds of housekeeping."""
    checkout_timeout: Seconds = 5.0
    """Seconds that a checkout waits for a free socket unless the call says otherwise."""
    max_lifetime: SecondsOrOff = 1800.0
    """Seconds after which a socket is replaced, less up to 10 % at random; 0 keeps it."""
    busy_poll: SecondsOrOff = 0.0002
    """Seconds that a REQ looks for its reply before it sleeps, if no other thread asks; 0 sleeps at once."""
    check_owner: bool = False
    """Whether a use of a leased socket by another thread than its lessee's is an error; slow, for development."""


class SQLPoolSettings(PoolSettings):
    """Settings of the SQL pool: ``SQL_POOL_*``, or ``[sql_pool]`` in ``poolwire.toml``."""

    table = "sql_pool"
    model_config = SettingsConfigDict(env_prefix="SQL_POOL_")

    max_connections: Count = 20
    """Connections per database, at most."""
    min_connections: Annotated[int, Field(ge=0, le=100_000)] = 2
    """Idle connections that housekeeping leaves open."""
    max_idle_time: Seconds = 600.0
    """Seconds after which an idle connection above the minimum is closed."""
    health_check_interval: Seconds = 60.0
    """Seconds between two rounds of housekeeping."""
    checkout_timeout: Seconds = 5.0
    """Seconds that a checkout waits for a free connection unless the call says otherwise."""
    max_lifetime: SecondsOrOff = 1800.0
    """Seconds after which a connection is replaced, less up to 10 % at random; 0 keeps it."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        least, most = self.min_connections, self.max_connections
        if least > most and "min_connections" in self.model_fields_set:  # the default means as many as there may be
            raise ConfigError(
                f"SQL_POOL_MIN_CONNECTIONS={least} is above SQL_POOL_MAX_CONNECTIONS={most}; "
                "lower the one or raise the other"
            )


class HTTPPoolSettings(PoolSettings):
    """Settings of the HTTP pool: ``HTTP_POOL_*``, or ``[http_pool]`` in ``poolwire.toml``."""

    table = "http_pool"
    model_config = SettingsConfigDict(env_prefix="HTTP_POOL_")

    max_sessions: Count = 10
    """Transports (an origin with its TLS settings and limits) kept open, at most."""
    session_timeout: Seconds = 300.0
    """Seconds after which an idle transport is closed."""
    health_check_interval: Seconds = 60.0
    """Seconds between two rounds of housekeeping."""
    max_connections: Count = 100
    """Connections per transport, at most."""
    max_lifetime: SecondsOrOff = 1800.0
    """Seconds after which a connection is replaced, less up to 10 % at random; 0 keeps it."""
