"""Database configs: keys of connections, built from URLs and fields."""

import os
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

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


OTHER: dict[str, Any] = {
    "backend": "sqlite",
    "database": "other",
    "host": "other",
    "port": 6543,
    "username": "bob",
    "password": SecretStr("other"),
    "application_name": "other",
    "connect_timeout": 1.0,
    "statement_timeout": 1.0,
    "prepared": False,
    "sslmode": "require",
    "sslrootcert": "/other",
    "sslcert": "/other",
    "sslkey": "/other",
    "readonly": True,
    "busy_timeout": 1.0,
    "foreign_keys": False,
    "journal_mode": "DELETE",
    "synchronous": "FULL",
}


@pytest.mark.parametrize("name", [each.name for each in fields(DatabaseConfig) if each.init])
def test_every_field_belongs_to_the_key(name: str) -> None:
    """A config that differs in anything, the password included, is another key."""
    config = get_postgresql_config("db", 5432, "app", "ada", "secret")
    other = replace(config, **{name: OTHER[name]})

    assert other != config
    assert hash(other) != hash(config)


def test_a_password_of_any_characters_survives_and_is_never_shown() -> None:
    """The password reaches the driver as it is, and no representation has it."""
    config = get_postgresql_config("db", 5432, "app", "ada", CANARY)

    assert config.password is not None
    assert config.password.get_secret_value() == CANARY
    assert CANARY not in f"{config!r} {config} {config.label}"


def test_a_password_is_a_secret_however_it_is_set() -> None:
    """A str that comes by replace() is wrapped like one that comes by a function."""
    config = replace(get_postgresql_config(username="ada"), password=CANARY)  # type: ignore[arg-type]

    assert config == get_postgresql_config(username="ada", password=CANARY)
    assert CANARY not in repr(config)


def test_a_password_of_another_type_is_refused_unseen() -> None:
    """Bytes would be shown in the config's representation; the error names their type only."""
    with pytest.raises(ConfigError, match="not bytes") as caught:
        get_postgresql_config(password=b"hunter2")  # type: ignore[arg-type]

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:hun@ter2@db/x",
        "postgresql://ada:hun@ter2@db:5432/x",
        "postgresql://ada:hun@ter2/x@db/x",
        "postgresql://ada:hun@ter2?x@db/x",
        "postgresql://ada:hun@ter2?x=1@db/x",
        "postgresql://ada:hun@ter2/x?y=1@db/x",
    ],
)
def test_a_bare_at_sign_in_the_password_is_refused_unseen(url: str) -> None:
    """It would make a part of the password the host's name, which labels and errors show."""
    with pytest.raises(ConfigError, match="%40") as caught:
        DatabaseConfig.from_url(url)

    assert not [part for part in ("ada", "hun", "ter2") if part in str(caught.value)]


def test_an_at_sign_in_the_query_is_its_options() -> None:
    """A URL's option may have one: only those of the user and the password end where the host begins."""
    config = DatabaseConfig.from_url("postgresql://ada:hunter2@db/x?application_name=a@b")

    assert config == get_postgresql_config("db", 5432, "x", "ada", "hunter2", application_name="a@b")


@pytest.mark.parametrize(
    "options",
    [{"port": "5432"}, {"connect_timeout": "5"}, {"statement_timeout": "5"}, {"statement_timeout": float("inf")}],
    ids=lambda each: next(iter(each)),
)
def test_a_number_given_as_text_is_refused(options: dict[str, Any]) -> None:
    """The error names the field, as for a number that is out of range."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        get_postgresql_config(**options)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (get_postgresql_config, {"prepared": "false"}),
        (partial(get_sqlite_config, "x.db"), {"readonly": "false"}),
        (partial(get_sqlite_config, "x.db"), {"foreign_keys": 0}),
    ],
)
def test_what_is_no_boolean_is_refused(make: Callable[..., DatabaseConfig], option: dict[str, Any]) -> None:
    """A text such as "false" would count as true."""
    with pytest.raises(ConfigError, match=f"{next(iter(option))}=.* it must be True or False"):
        make(**option)


@pytest.mark.parametrize(
    "options",
    [
        {"statement_timeout": 1e9}, {"connect_timeout": 1e300}, {"connect_timeout": True}, {"port": True},
        {"application_name": 5}, {"application_name": "a\0b"}, {"application_name": "a\udce4"}, {"username": 5},
        {"host": 5}, {"host": ""}, {"database": "x\0y"}, {"database": 5}, {"sslcert": 5},
    ],
)  # fmt: skip
def test_what_postgresql_would_refuse_is_refused(options: dict[str, Any]) -> None:
    """A config that no attempt to connect could succeed with names the field, instead of a timeout later."""
    with pytest.raises(ConfigError, match=f"^{next(iter(options))}="):
        get_postgresql_config(**options)


def test_what_sqlite_would_take_for_something_else_is_refused() -> None:
    """An empty path, which is a private database, one of bytes it cannot have, and a memory that nobody can fill."""
    with pytest.raises(ConfigError, match="path='' is not allowed"):
        get_sqlite_config("")
    with pytest.raises(ConfigError, match="database="):
        get_sqlite_config("a\0b.db")
    with pytest.raises(ConfigError, match="readonly=True"):
        get_sqlite_config(":memory:", readonly=True)
    with pytest.raises(ConfigError, match="busy_timeout="):
        get_sqlite_config("x.db", busy_timeout=1e10)


def test_a_file_may_be_given_as_a_path_or_as_bytes(tmp_path: Path) -> None:
    """The config has its text, so that both are one key, also of a name that is no UTF-8."""
    name = b"\xff.db"

    assert get_sqlite_config(bytes(tmp_path / "x.db")) == get_sqlite_config(tmp_path / "x.db")
    assert get_sqlite_config(bytes(tmp_path) + b"/" + name).database == str(tmp_path / os.fsdecode(name))
    assert get_postgresql_config(sslcert=Path("/c.pem")) == get_postgresql_config(sslcert="/c.pem")


@pytest.mark.parametrize("url", ["sqlite://library.db", "sqlite://./library.db", "sqlite://localhost/library.db"])
def test_a_sqlite_url_with_a_slash_too_few_is_refused(url: str) -> None:
    """It names a host, and was a database in memory, or another file than it says."""
    with pytest.raises(ConfigError, match=r"write sqlite:///library\.db"):
        DatabaseConfig.from_url(url)


def test_a_url_says_a_boolean_in_words() -> None:
    """The words are those of the settings, in either case."""
    for word, said in {"no": False, "off": False, "False": False, "0": False, "yes": True, "ON": True}.items():
        assert DatabaseConfig.from_url(f"sqlite:///x.db?readonly={word}").readonly is said


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
        ("postgresql://ada:hunter2@db/x?backend=sqlite", "postgresql has no option backend"),
        ("sqlite:///x.db?backend=postgresql", "sqlite has no option backend"),
        ("sqlite:///x.db?path=y.db", "sqlite has no option path"),
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


def test_an_option_that_a_url_repeats_is_refused() -> None:
    """Which of the two would count is not guessed, and the value is not shown."""
    with pytest.raises(ConfigError, match="says password more than once") as caught:
        DatabaseConfig.from_url("postgresql://ada@db/x?password=hunter2&password=hunter3")
    assert "hunter" not in str(caught.value)


def test_a_limit_below_a_millisecond_is_a_limit() -> None:
    """It is rounded up: 0 would mean none to PostgreSQL."""
    assert get_postgresql_config(statement_timeout=0.0004).statement_milliseconds == 1
    assert get_postgresql_config(statement_timeout=0.25).statement_milliseconds == 250
    assert get_postgresql_config().statement_milliseconds is None


def test_the_systems_authorities_go_with_full_verification() -> None:
    """sslrootcert="system" with a weaker mode is refused: anybody can get a certificate for a name of their own."""
    with pytest.raises(ConfigError, match="sslmode='require' is not allowed; it must be 'verify-full'"):
        get_postgresql_config(sslmode="require", sslrootcert="system")
    assert get_postgresql_config(sslmode="verify-full", sslrootcert="system").sslrootcert == "system"
