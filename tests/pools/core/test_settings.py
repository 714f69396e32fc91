"""Where the pools' settings come from, and that each documented variable takes effect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.pools.core.settings import HTTPPoolSettings, SQLPoolSettings, ZMQPoolSettings
from app.pools.errors import ConfigError, PoolTimeout
from app.pools.http_pool import HTTPConfig, HTTPPool
from app.pools.sql_pool import SQLPool, get_sqlite_config
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo import replier
from tests.support.waiting import eventually

DOCUMENTED = [
    ("ZMQ_POOL_MAX_CONNECTIONS", ZMQPoolSettings, "max_connections", 50),
    ("ZMQ_POOL_MAX_IDLE_TIME", ZMQPoolSettings, "max_idle_time", 300),
    ("ZMQ_POOL_HEALTH_CHECK_INTERVAL", ZMQPoolSettings, "health_check_interval", 60),
    ("SQL_POOL_MAX_CONNECTIONS", SQLPoolSettings, "max_connections", 20),
    ("SQL_POOL_MIN_CONNECTIONS", SQLPoolSettings, "min_connections", 2),
    ("SQL_POOL_MAX_IDLE_TIME", SQLPoolSettings, "max_idle_time", 600),
    ("HTTP_POOL_MAX_SESSIONS", HTTPPoolSettings, "max_sessions", 10),
    ("HTTP_POOL_SESSION_TIMEOUT", HTTPPoolSettings, "session_timeout", 300.0),
]


@pytest.mark.parametrize(("variable", "settings", "field", "default"), DOCUMENTED)
def test_a_documented_variable_sets_its_field(
    variable: str, settings: Callable[[], Any], field: str, default: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variable has its documented default, and its value from the environment."""
    monkeypatch.delenv(variable, raising=False)
    assert default == getattr(settings(), field)

    monkeypatch.setenv(variable, "7")
    assert 7 == getattr(settings(), field)


@pytest.mark.parametrize(("variable", "settings", "field", "default"), DOCUMENTED)
@pytest.mark.parametrize("value", ["many", "-1", ""])
def test_a_bad_value_names_the_variable_and_the_value(
    variable: str, settings: Callable[[], Any], field: str, default: float, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which variable, what it holds, and where it may be set."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigError) as caught:
        settings()

    assert f"{variable}={value!r}" in str(caught.value)
    assert "Set it in the environment, .env or [" in str(caught.value)


def test_a_minimum_above_the_maximum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names both; the default of one gives way to the other."""
    monkeypatch.setenv("SQL_POOL_MAX_CONNECTIONS", "1")
    assert SQLPoolSettings().max_connections == 1
    monkeypatch.setenv("SQL_POOL_MIN_CONNECTIONS", "2")

    with pytest.raises(ConfigError, match="SQL_POOL_MIN_CONNECTIONS=2 is above SQL_POOL_MAX_CONNECTIONS=1"):
        SQLPoolSettings()
    assert SQLPoolSettings(max_connections=2).min_connections == 2


def test_the_environment_goes_before_dotenv_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three sources the nearest to the process wins, field by field."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poolwire.toml").write_text(
        "[zmq_pool]\nmax_connections = 1\nmax_idle_time = 1\nhealth_check_interval = 1\n"
    )
    (tmp_path / ".env").write_text("ZMQ_POOL_MAX_CONNECTIONS=2\nZMQ_POOL_MAX_IDLE_TIME=2\n")
    monkeypatch.setenv("ZMQ_POOL_MAX_CONNECTIONS", "3")

    settings = ZMQPoolSettings()

    assert (3, 2, 1) == (settings.max_connections, settings.max_idle_time, settings.health_check_interval)


def test_a_broken_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not TOML, or that was asked for and is missing, is an error with its name."""
    broken = tmp_path / "other.toml"
    broken.write_text("max_connections =")
    monkeypatch.setenv("POOLWIRE_CONFIG", str(broken))
    with pytest.raises(ConfigError, match=r"other\.toml cannot be read"):
        ZMQPoolSettings()

    broken.unlink()
    with pytest.raises(ConfigError, match=r"POOLWIRE_CONFIG=.*other\.toml: there is no such file"):
        ZMQPoolSettings()


POOLS = [ZMQPoolSettings, SQLPoolSettings, HTTPPoolSettings]


@pytest.mark.parametrize("settings", POOLS)
def test_a_misspelt_setting_is_an_error_with_the_nearest_name(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that there is not is refused as an argument and in the file, and not silently without effect."""
    with pytest.raises(ConfigError, match=r"no setting 'max_conections'; did you mean max_connections\?"):
        settings(max_conections=3)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "poolwire.toml").write_text(f"[{settings.table}]\nmax_conections = 3\n")
    with pytest.raises(ConfigError, match=rf"\[{settings.table}\] of poolwire\.toml has no .* did you mean"):
        settings()
    (tmp_path / "poolwire.toml").write_text(f"[{settings.table}]\nxyz = 3\n")
    with pytest.raises(ConfigError, match="no setting 'xyz'; known are "):
        settings()


@pytest.mark.parametrize("settings", POOLS)
def test_a_table_that_is_none_is_an_error(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value by the name of a pool's table is named, and so is what to write."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poolwire.toml").write_text(f"{settings.table} = 3\n")
    with pytest.raises(ConfigError, match=rf"{settings.table}=3 is not a table; write \[{settings.table}\]"):
        settings()


@pytest.mark.parametrize("settings", POOLS)
def test_other_programs_variables_are_ignored(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other programs have in the environment and in ``.env`` is no setting of a pool, nor an error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("OTHER_POOL_SIZE=2\nMAX_CONNECTIONS=many\n")
    monkeypatch.setenv("DATABASE_POOL", "3")
    assert settings() == settings()


def test_max_connections_caps_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ZMQ_POOL_MAX_CONNECTIONS`` sockets of one key can be leased, and not one more."""
    monkeypatch.setenv("ZMQ_POOL_MAX_CONNECTIONS", "2")
    config = SocketConfig(SocketType.REQ, "inproc://nobody")
    with ZMQPool() as pool, pool.socket(config), pool.socket(config):
        with pytest.raises(PoolTimeout, match="2 of 2 in use"), pool.socket(config, timeout=0.05):
            pass


def test_max_connections_caps_database_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``SQL_POOL_MAX_CONNECTIONS`` connections of one database can be leased, and not one more."""
    monkeypatch.setenv("SQL_POOL_MAX_CONNECTIONS", "1")
    monkeypatch.setenv("SQL_POOL_CHECKOUT_TIMEOUT", "0.05")
    config = get_sqlite_config(tmp_path / "x.db")
    with SQLPool() as pool, pool.connection(config):
        with pytest.raises(PoolTimeout, match="1 of 1 in use"), pool.connection(config):
            pass


def test_idle_sockets_are_closed_by_housekeeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ZMQ_POOL_MAX_IDLE_TIME`` after its last use a socket is closed, at the next round of housekeeping."""
    monkeypatch.setenv("ZMQ_POOL_MAX_IDLE_TIME", "0.05")
    monkeypatch.setenv("ZMQ_POOL_HEALTH_CHECK_INTERVAL", "0.05")
    with replier() as endpoint, ZMQPool() as pool:
        pool.request(SocketConfig(SocketType.REQ, endpoint), b"x")
        assert 1 == pool.get_stats()["metrics"]["pool_misses"]
        eventually(lambda: 0 == pool.get_stats()["metrics"]["total_connections"])
        stats = pool.get_stats()

    assert 1 == stats["metrics"]["cleanup_count"]
    assert stats["cleanup_thread_alive"]


def test_idle_database_connections_shrink_to_the_minimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``SQL_POOL_MAX_IDLE_TIME`` closes idle connections down to ``SQL_POOL_MIN_CONNECTIONS``."""
    monkeypatch.setenv("SQL_POOL_MAX_IDLE_TIME", "0.05")
    monkeypatch.setenv("SQL_POOL_MIN_CONNECTIONS", "1")
    monkeypatch.setenv("SQL_POOL_HEALTH_CHECK_INTERVAL", "0.05")
    config = get_sqlite_config(tmp_path / "x.db")
    with SQLPool() as pool:
        with pool.connection(config), pool.connection(config), pool.connection(config):
            assert 3 == pool.get_stats()["metrics"]["active_connections"]
        eventually(lambda: pool.get_stats()["metrics"]["total_connections"] <= 1)
        eventually(lambda: pool.get_stats()["metrics"]["cleanup_count"] >= 2)
        assert 1 == pool.get_stats()["metrics"]["total_connections"]


def test_max_sessions_bounds_the_transports(monkeypatch: pytest.MonkeyPatch) -> None:
    """``HTTP_POOL_MAX_SESSIONS`` origins keep a transport; one more closes the one unused longest."""
    monkeypatch.setenv("HTTP_POOL_MAX_SESSIONS", "2")
    with HTTPPool() as pool:
        for port in (1, 2, 3):
            with pool.session(HTTPConfig(f"http://127.0.0.1:{port}")):
                pass
        stats = pool.get_stats()

    assert 2 == stats["metrics"]["total_connections"]


def test_idle_transports_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """``HTTP_POOL_SESSION_TIMEOUT`` after its last use a transport is closed."""
    monkeypatch.setenv("HTTP_POOL_SESSION_TIMEOUT", "0.05")
    monkeypatch.setenv("HTTP_POOL_HEALTH_CHECK_INTERVAL", "0.05")
    with HTTPPool() as pool:
        with pool.session(HTTPConfig("http://127.0.0.1:1")):
            pass
        eventually(lambda: 0 == pool.get_stats()["metrics"]["total_connections"])
