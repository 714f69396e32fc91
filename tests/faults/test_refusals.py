"""Servers that refuse a login, in whatever language they say so."""

import asyncio
import errno
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from app.pools.errors import ConnectionRefused, DatabaseUnreachable
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings, get_postgresql_config
from tests.support.tcp_server import TCPServer
from tests.support.threads import refuse_threads
from tests.support.waiting import eventually

SSL_REQUEST = 80877103
WRONG_PASSWORD = ("28P01", "Passwort-Authentifizierung für Benutzer »ada« fehlgeschlagen")
FULL = ("53300", "sorry, too many clients already")
STARTING_UP = ("57P03", "das Datenbanksystem startet")


class GermanServer(TCPServer):
    """A PostgreSQL that has one answer to every login.

    Args:
        sqlstate: the SQLSTATE of the answer.
        message: what it says.
    """

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(0)
        fields = {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": message}
        body = b"".join(f"{kind}{text}\0".encode() for kind, text in fields.items()) + b"\0"
        self._answer = b"E" + struct.pack("!i", len(body) + 4) + body
        self.logins = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            await reader.readexactly(length - 8)
            if code != SSL_REQUEST:
                break
            writer.write(b"N")
        self.logins += 1
        writer.write(self._answer)
        await writer.drain()
        writer.close()

    @property
    def config(self) -> DatabaseConfig:
        return get_postgresql_config("127.0.0.1", self.port, "library", "ada", "wrong")


async def test_a_wrong_password_is_refused_at_once_in_german() -> None:
    """A server that refuses a password in its own language is not asked over and over, by threads nor by tasks."""
    with GermanServer(*WRONG_PASSWORD) as server, SQLPool(SQLPoolSettings(checkout_timeout=20)) as pool:
        with pytest.raises(ConnectionRefused, match="fehlgeschlagen"):
            await asyncio.to_thread(pool.execute_query, server.config, "SELECT 1")
        assert server.logins <= 2
        with pytest.raises(ConnectionRefused, match="fehlgeschlagen"):
            await pool.execute_query_async(server.config, "SELECT 1")
        assert server.logins <= 3


def test_a_wrong_password_in_german_waits_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of threads who cannot find out whether a refusal will pass tries again, until it can."""
    with GermanServer(*WRONG_PASSWORD) as server, SQLPool(SQLPoolSettings(checkout_timeout=20)) as pool:
        with monkeypatch.context() as patched, ThreadPoolExecutor(1, "caller") as threads:
            refuse_threads(patched, "ThreadPoolExecutor")
            refused = threads.submit(pool.execute_query, server.config, "SELECT 1")
            eventually(lambda: server.logins > 1 or refused.done())
            patched.undo()
            with pytest.raises(ConnectionRefused, match="fehlgeschlagen"):
                refused.result(20)


@pytest.mark.parametrize("for_what", ["an event loop", "asyncpg"])
def test_a_wrong_password_in_german_waits_for_a_descriptor(for_what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, too, who cannot find out whether a refusal will pass tries again, until it can."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.delitem(sys.modules, "app.pools.sql_pool.asyncpg_driver", raising=False)
    with GermanServer(*WRONG_PASSWORD) as server, SQLPool(SQLPoolSettings(checkout_timeout=20)) as pool:
        with monkeypatch.context() as patched, ThreadPoolExecutor(1, "caller") as threads:
            if for_what == "asyncpg":
                patched.delitem(sys.modules, "asyncpg", raising=False)
                patched.setattr(sys, "meta_path", [SimpleNamespace(find_spec=refuse), *sys.meta_path])
            else:
                patched.setattr(asyncio.events, "new_event_loop", refuse)
            refused = threads.submit(pool.execute_query, server.config, "SELECT 1")
            eventually(lambda: server.logins > 1 or refused.done())
            patched.undo()
            with pytest.raises(ConnectionRefused, match="fehlgeschlagen"):
                refused.result(20)


def test_a_server_that_starts_up_in_german_is_waited_for() -> None:
    """What will pass is tried again, whatever the language."""
    with GermanServer(*STARTING_UP) as server, SQLPool(SQLPoolSettings(checkout_timeout=1)) as pool:
        with pytest.raises(DatabaseUnreachable, match="das Datenbanksystem startet"):
            pool.execute_query(server.config, "SELECT 1")
        assert server.logins > 2


async def test_a_server_that_is_full_has_its_own_advice() -> None:
    """Who finds no slot on a server is not told to look whether it runs."""
    advice = "too many clients already .*Raise that limit of the server's"
    with GermanServer(*FULL) as server, SQLPool(SQLPoolSettings(checkout_timeout=0.5)) as pool:
        with pytest.raises(DatabaseUnreachable, match=advice):
            await asyncio.to_thread(pool.execute_query, server.config, "SELECT 1")
        with pytest.raises(DatabaseUnreachable, match=advice):
            await pool.execute_query_async(server.config, "SELECT 1")


def test_a_server_that_is_down_has_its_own_advice(unused_tcp_port: int) -> None:
    """Where nobody listens the advice is to see whether a server does, and which."""
    config = get_postgresql_config("127.0.0.1", unused_tcp_port, "library", "ada", "secret")
    with (
        SQLPool(SQLPoolSettings(checkout_timeout=0.3)) as pool,
        pytest.raises(DatabaseUnreachable, match="Check host and port, that the server runs"),
    ):
        pool.execute_query(config, "SELECT 1")
