"""``AgentContainer`` with its real pools: what an agent's method receives."""

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import providers
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from app.containers import AgentContainer, Lifecycle, Provide, Resources, inject
from app.pools.errors import ConfigError, NotSent
from app.pools.http_pool import HTTPClient
from app.pools.sql_pool import Database, get_sqlite_config
from app.pools.zmq_pool import KeyPair, Peer, Publisher, SocketConfig, SocketType, ZMQPool

CALLS = 50


@inject
def meet(together: threading.Barrier, seen: set[int], db: Connection = Provide["databases.main"]) -> None:
    seen.add(id(db.connection.dbapi_connection))
    together.wait(30)


@inject
async def meet_async(seen: list[Any], all_here: asyncio.Event, db: AsyncConnection = Provide["databases.main"]) -> None:
    raw = await db.get_raw_connection()
    seen.append(raw.driver_connection)
    if CALLS == len(seen):
        all_here.set()
    await asyncio.wait_for(all_here.wait(), 30)


@inject
def everything(
    connection: Connection = Provide["databases.main"],
    session: Session = Provide["databases.main.session"],
    handle: Database = Provide["databases.main.handle"],
    api: HTTPClient = Provide["apis.web"],
    peer: Peer = Provide["peers.scribe"],
    publisher: Publisher = Provide["publishers.events"],
) -> list[type]:
    return [type(value) for value in (connection, session, handle, api, peer, publisher)]


@inject
async def everything_async(
    connection: AsyncConnection = Provide["databases.main"],
    session: AsyncSession = Provide["databases.main.session"],
    handle: Database = Provide["databases.main.handle"],
) -> list[type]:
    return [type(value) for value in (connection, session, handle)]


@inject
def move(fail: bool, db: Connection = Provide["databases.main.transaction"]) -> None:
    db.execute(text("INSERT INTO calls VALUES (1000)"))
    if fail:
        raise ZeroDivisionError


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SQL_POOL_MAX_CONNECTIONS", str(CALLS))
    resources = Resources(
        databases={"main": get_sqlite_config(tmp_path / "main.db")},
        apis={"web": {"base_url": "http://127.0.0.1:9"}},
        peers={"scribe": {"endpoint": "inproc://scribe"}},
        publishers={"events": {"endpoint": "inproc://events"}},
    )
    return AgentContainer(resources=providers.Object(resources))


def rows(container: Any) -> int:
    count: int = container.databases.main.handle().execute_query("SELECT count(*) FROM calls")[0][0]
    return count


def active(container: Any) -> int:
    count: int = container.sql_pool().get_stats()["metrics"]["active_connections"]
    return count


def create_table(container: Any) -> None:
    container.databases.main.handle().execute_query("CREATE TABLE calls (caller INTEGER)")


def in_threads(target: Any, arguments: list[tuple[Any, ...]]) -> list[BaseException]:
    """Call ``target`` in one thread for each of ``arguments``, and return what was raised."""
    raised: list[BaseException] = []

    def call(*args: Any) -> None:
        try:
            target(*args)
        except BaseException as error:  # noqa: BLE001 - returned to the main thread
            raised.append(error)

    threads = [threading.Thread(target=call, args=args) for args in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return raised


def test_fifty_threads_each_get_their_own_connection(container: Any) -> None:
    """Fifty calls that are all inside at once hold fifty connections, and give all of them back."""
    together, seen = threading.Barrier(CALLS), set[int]()
    with Lifecycle(container, modules=[sys.modules[__name__]]):
        raised = in_threads(meet, [(together, seen)] * CALLS)
        assert 0 == active(container)

    assert [] == raised
    assert CALLS == len(seen)


async def test_fifty_tasks_each_get_their_own_connection(container: Any) -> None:
    """Fifty coroutines that are all inside at once hold fifty connections, and give all of them back."""
    seen: list[Any] = []
    async with Lifecycle(container, modules=[sys.modules[__name__]]):
        all_here = asyncio.Event()
        await asyncio.gather(*(meet_async(seen, all_here) for _ in range(CALLS)))
        assert 0 == active(container)

    assert CALLS == len({id(connection) for connection in seen})


def test_each_name_gives_what_its_kind_says(container: Any) -> None:
    """Connections and sessions are synchronous in a function."""
    with Lifecycle(container, modules=[sys.modules[__name__]]):
        assert [Connection, Session, Database, HTTPClient, Peer, Publisher] == everything()


async def test_the_same_names_give_asynchronous_connections_to_a_coroutine(container: Any) -> None:
    """Connections and sessions are asynchronous in a coroutine, from the same providers."""
    async with Lifecycle(container, modules=[sys.modules[__name__]]):
        assert [AsyncConnection, AsyncSession, Database] == await everything_async()


def test_a_transaction_commits_at_the_end_of_the_call_or_not_at_all(container: Any) -> None:
    """The call is the transaction: it commits when the call returns and rolls back when it raises."""
    with Lifecycle(container, modules=[sys.modules[__name__]]):
        create_table(container)
        move(fail=False)
        with pytest.raises(ZeroDivisionError):
            move(fail=True)

        assert 1 == rows(container)


@pytest.mark.parametrize(
    ("kind", "values", "complaint"),
    [
        ("databases", {}, r"\[databases.broken\] has no 'url'"),
        ("databases", {"url": "sqlite:///x.db", "pasword": "canary"}, r"\[databases.broken\].*pasword"),
        ("apis", {"base_url": "not a url"}, r"\[apis.broken\]"),
        ("peers", {"endpoint": "tcp//127.0.0.1"}, r"\[peers.broken\].*tcp//127.0.0.1"),
        ("sockets", {"type": "REPLY", "endpoint": "inproc://x"}, r"\[sockets.broken\].*REPLY"),
    ],
)
def test_a_wrong_resource_is_refused_with_its_table(kind: str, values: dict[str, str], complaint: str) -> None:
    """The error names the table and the option, and shows no secret."""
    resources = Resources(**{kind: {"broken": values}})

    with pytest.raises(ConfigError, match=complaint) as caught:
        resources.config(kind, "broken")
    assert "canary" not in str(caught.value)


def test_resources_come_from_the_environment_above_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable overrides the same key of the file, and leaves the file's other names alone."""
    (tmp_path / "poolwire.toml").write_text(
        '[databases.one]\nurl = "sqlite:///one.db"\n[databases.two]\nurl = "sqlite:///two.db"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POOLWIRE_DATABASES__TWO__URL", "sqlite:///other.db")
    container: Any = AgentContainer()

    assert str(tmp_path / "one.db") == container.databases.one.config.database
    assert str(tmp_path / "other.db") == container.databases.two.config.database


def test_a_resource_that_is_no_table_is_refused_unseen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable without its option, or a table's option without a name, stops the program before it serves."""
    monkeypatch.setenv("POOLWIRE_DATABASES__LIBRARY", "postgresql://ada:canary@db/x")
    with pytest.raises(
        ConfigError, match=r"\[databases.library\] is no table.*POOLWIRE_DATABASES__LIBRARY__"
    ) as caught:
        Resources()
    assert "canary" not in str(caught.value)
    monkeypatch.delenv("POOLWIRE_DATABASES__LIBRARY")

    with pytest.raises(ConfigError, match=r"\[apis.main\] is no table, but DatabaseConfig"):
        Resources(apis={"main": get_sqlite_config(":memory:")})


@pytest.mark.parametrize("word", ["no", "off", "false", "False", "0"])
def test_the_environment_says_no_as_for_a_setting(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boolean of a named resource is read as pydantic reads those of the settings."""
    for name, value in {
        "DATABASES__ONE__URL": "sqlite:///one.db",
        "DATABASES__ONE__FOREIGN_KEYS": word,
        "APIS__ONE__BASE_URL": "https://host",
        "APIS__ONE__VERIFY": word,
        "SOCKETS__ONE__TYPE": "PULL",
        "SOCKETS__ONE__ENDPOINT": "tcp://127.0.0.1:5555",
        "SOCKETS__ONE__ALLOW_PLAINTEXT": word,
        "PUBLISHERS__ONE__ENDPOINT": "tcp://127.0.0.1:5556",
        "PUBLISHERS__ONE__BIND": word,
    }.items():
        monkeypatch.setenv(f"POOLWIRE_{name}", value)
    resources = Resources()

    assert resources.config("databases", "one").foreign_keys is False
    assert resources.config("apis", "one").verify is False
    assert resources.config("sockets", "one").allow_plaintext is False
    assert resources.config("publishers", "one").bind is False


@pytest.mark.parametrize("password", ["12345", "007", "1234567890123456789012345", "x"])
def test_a_password_of_digits_is_a_text(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable may hold it, whatever it looks like."""
    monkeypatch.setenv("POOLWIRE_DATABASES__ONE__URL", "postgresql://db/one")
    monkeypatch.setenv("POOLWIRE_DATABASES__ONE__PASSWORD", password)

    found = Resources().config("databases", "one").password

    assert found.get_secret_value() == password


@pytest.mark.parametrize("value", ["maybe", "2"])
def test_what_says_neither_yes_nor_no_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the table and the option."""
    monkeypatch.setenv("POOLWIRE_DATABASES__ONE__URL", "sqlite:///one.db")
    monkeypatch.setenv("POOLWIRE_DATABASES__ONE__READONLY", value)

    with pytest.raises(ConfigError, match=r"\[databases.one\].*readonly=.*True or False"):
        Resources().config("databases", "one")


def test_key_files_named_in_the_file_encrypt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_endpoint: str
) -> None:
    """Sockets of poolwire.toml whose `curve` names key files serve each other, and nobody without the server's key."""
    (tmp_path / "keys").mkdir()
    for name in ("server", "client"):
        KeyPair.new().write(tmp_path / "keys", name)
    (tmp_path / "poolwire.toml").write_text(
        f"""
        [sockets.served]
        type = "REP"
        endpoint = "{free_endpoint}"
        bind = true
        curve = {{ keys = "keys/server.key_secret" }}

        [sockets.asked]
        type = "REQ"
        endpoint = "{free_endpoint}"
        curve = {{ server = "keys/server.key", keys = "keys/client.key_secret" }}
        """
    )
    monkeypatch.chdir(tmp_path)
    container: Any = AgentContainer()
    asked, served = container.sockets.asked.config, container.sockets.served.config
    with ZMQPool() as pool, pool.socket(served) as server, pool.socket(asked) as client:
        client.send(b"a secret")
        assert b"a secret" == server.recv()
        server.send(b"kept")
        assert b"kept" == client.recv()
        plain = SocketConfig(SocketType.REQ, free_endpoint, send_timeout=0.5)
        with pytest.raises(NotSent):
            pool.request(plain, b"a secret")
