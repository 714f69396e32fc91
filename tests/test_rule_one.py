"""Rule 1: agents never construct connections. Only ``app/pools`` does, and this walks the package to prove it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "app"
ALLOWED = APP / "pools"

# What makes a connection, or something that makes connections, by its full name.
CONSTRUCTORS = {
    "aiohttp.ClientSession",
    "aiohttp.request",
    "aiosqlite.connect",
    "asyncpg.connect",
    "asyncpg.create_pool",
    "http.client.HTTPConnection",
    "http.client.HTTPSConnection",
    "psycopg.AsyncConnection.connect",
    "psycopg.Connection.connect",
    "psycopg.connect",
    "requests.Session",
    "requests.delete",
    "requests.get",
    "requests.head",
    "requests.patch",
    "requests.post",
    "requests.put",
    "requests.request",
    "requests.session",
    "socket.create_connection",
    "socket.socket",
    "sqlalchemy.create_engine",
    "sqlalchemy.ext.asyncio.create_async_engine",
    "sqlite3.connect",
    "urllib.request.urlopen",
    "urllib3.HTTPConnectionPool",
    "urllib3.HTTPSConnectionPool",
    "urllib3.PoolManager",
    "urllib3.request",
    "zmq.Context",
    "zmq.Context.instance",
    "zmq.Socket",
    "zmq.asyncio.Context",
    "zmq.asyncio.Context.instance",
    "zmq.asyncio.Socket",
}


def constructions(source: str) -> list[tuple[int, str]]:
    """Return the line and the full name of each call in ``source`` that makes a connection."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                names[bound] = alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    found = [(call.lineno, full_name(call.func, names)) for call in calls]
    return [(line, name) for line, name in found if name in CONSTRUCTORS]


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """Return the dotted name of ``node`` with its first part resolved through the imports."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "?")
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    return "?"


def test_only_the_pools_construct_connections() -> None:
    """No module of the package outside app/pools makes a context, a socket, an engine, a connection or a session."""
    offences = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted(APP.rglob("*.py"))
        if not path.is_relative_to(ALLOWED)
        for line, name in constructions(path.read_text(encoding="utf-8"))
    ]

    assert offences == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import zmq\n\nclass Agent:\n    def __init__(self):\n        self.context = zmq.Context()\n", "zmq.Context"),
        ("from zmq import Context as C\nC()\n", "zmq.Context"),
        ("import zmq.asyncio as za\nza.Context.instance()\n", "zmq.asyncio.Context.instance"),
        ("import sqlite3\nsqlite3.connect('x')\n", "sqlite3.connect"),
        ("from sqlalchemy import create_engine\ncreate_engine('sqlite://')\n", "sqlalchemy.create_engine"),
        ("import requests\nrequests.get('http://127.0.0.1')\n", "requests.get"),
        ("from aiohttp import ClientSession\nClientSession()\n", "aiohttp.ClientSession"),
        ("import urllib.request\nurllib.request.urlopen('http://127.0.0.1')\n", "urllib.request.urlopen"),
    ],
)
def test_a_construction_in_an_agent_is_found(source: str, name: str) -> None:
    """Someone who adds such a call to an agent fails the rule, however the name was imported."""
    assert [name] == [found for _, found in constructions(source)]


def test_lookalikes_are_not_constructions() -> None:
    """A dictionary's get, and a connect of one's own, are not taken for connections."""
    assert constructions("requests = {}\nrequests.get('a')\nself.connect()\n") == []
