"""Database configs: keys of connections, built from URLs and fields."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.pools.errors import ConfigError
from app.pools.sql_pool import DatabaseConfig, get_postgresql_config, get_sqlite_config

CANARY = "p@ss:/?#[]% ünsäfe"


def test_equal_configs_are_one_key() -> None:
    """Two configs with the same fields are equal and hash alike."""
    first, second = (get_postgresql_config("db", 5432, "app", "ada", "secret") for _ in range(2))

    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    "change",
    [
        {"password": SecretStr("other")},
        {"username": "bob"},
        {"sslmode": "require"},
        {"application_name": "other"},
        {"statement_timeout": 1.0},
        {"prepared": False},
    ],
)
def test_every_field_belongs_to_the_key(change: dict[str, object]) -> None:
    """A config that differs in anything, the password included, is another key."""
    config = get_postgresql_config("db", 5432, "app", "ada", "secret")

    assert replace(config, **change) != config  # type: ignore[arg-type]


def test_a_password_of_any_characters_survives_and_is_never_shown() -> None:
    """The password reaches the driver as it is, and no representation has it."""
    config = get_postgresql_config("db", 5432, "app", "ada", CANARY)

    assert config.password is not None
    assert config.password.get_secret_value() == CANARY
    assert CANARY not in f"{config!r} {config} {config.label}"


def test_a_url_becomes_a_config() -> None:
    """Host, port, credentials, database and options come from the URL; keyword options win."""
    config = DatabaseConfig.from_url(
        "postgresql+asyncpg://ada:p%40ss@db.example:6543/app?sslmode=require&prepared=false&connect_timeout=2",
        application_name="scanner",
    )

    expected = get_postgresql_config(
        "db.example",
        6543,
        "app",
        "ada",
        "p@ss",
        sslmode="require",
        prepared=False,
        connect_timeout=2.0,
        application_name="scanner",
    )
    assert config == expected


def test_sqlite_urls_name_a_file_or_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes are relative, four absolute, none is memory; the path is kept absolute."""
    monkeypatch.chdir(tmp_path)

    assert DatabaseConfig.from_url("sqlite:///x.db") == get_sqlite_config(tmp_path / "x.db")
    assert DatabaseConfig.from_url(f"sqlite:///{tmp_path}/x.db") == get_sqlite_config("x.db")
    assert DatabaseConfig.from_url("sqlite://").in_memory


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://root:hunter2@db/x", "'mysql'; allowed are sqlite and postgresql"),
        ("not a url: hunter2", "cannot be read"),
        ("postgresql://ada:hunter2@db/x?nonsense=1", "no option nonsense"),
        ("postgresql://ada:hunter2@db/x?prepared=maybe", "prepared='maybe'"),
        ("postgresql://ada:hunter2@db/x?sslmode=sometimes", "sslmode='sometimes'"),
        ("postgresql://ada:hunter2@db/x?statement_timeout=-1", r"statement_timeout=-1\.0"),
    ],
)
def test_a_wrong_url_is_an_error_that_names_it_without_the_password(url: str, complaint: str) -> None:
    """The message says what is wrong and what is allowed, and never shows a secret."""
    with pytest.raises(ConfigError, match=complaint) as caught:
        DatabaseConfig.from_url(url)

    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_option_of_the_other_database_is_refused() -> None:
    """SQLite knows no sslmode and PostgreSQL no journal."""
    with pytest.raises(ConfigError, match="sqlite has no option sslmode"):
        get_sqlite_config("x.db", sslmode="require")
    with pytest.raises(ConfigError, match="postgresql has no option journal_mode"):
        get_postgresql_config(journal_mode="WAL")


def test_the_default_host_is_this_machine_only() -> None:
    """No config connects anywhere by accident."""
    assert get_postgresql_config().host == "localhost"
