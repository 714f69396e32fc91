"""TLS to PostgreSQL, by a proxy that speaks it, for the server of the tests is built without."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tests.support
from app.pools.errors import ConnectionRefused
from app.pools.sql_pool import DatabaseConfig, SQLPool, SQLPoolSettings
from tests.support.chaos import Proxy

TLS = Path(tests.support.__file__).parent / "tls"


@pytest.fixture
def encrypted(postgres: DatabaseConfig) -> Iterator[DatabaseConfig]:
    """Return the database behind TLS, with a certificate of the tests' own authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    assert postgres.port is not None
    with Proxy(postgres.port, context) as proxy:
        yield replace(postgres, host="localhost", port=proxy.port)


async def assert_refused_at_once(pool: SQLPool, config: DatabaseConfig, message: str) -> None:
    """Check that both drivers refuse to connect after one attempt each, in the same words."""
    with pytest.raises(ConnectionRefused, match=message):
        pool.execute_query(config, "SELECT 1")
    with pytest.raises(ConnectionRefused, match=message):
        await pool.execute_query_async(config, "SELECT 1")
    assert [figures["connect_attempts"] for figures in pool.get_stats()["pools"].values()] == [1, 1]
    await pool.stop_async()


@pytest.mark.parametrize(
    ("sslmode", "trusted"),
    [("prefer", False), ("require", False), ("require", True), ("verify-ca", True), ("verify-full", True)],
)
async def test_each_mode_connects_where_it_should(
    pool: SQLPool, encrypted: DatabaseConfig, sslmode: str, trusted: bool
) -> None:
    """Both drivers accept a certificate that the mode trusts."""
    certificate = str(TLS / "ca.pem") if trusted else None
    config = replace(encrypted, sslmode=sslmode, sslrootcert=certificate)  # type: ignore[arg-type]

    assert pool.execute_query(config, "SELECT 1") == [(1,)]
    assert await pool.execute_query_async(config, "SELECT 1") == [(1,)]
    await pool.stop_async()


@pytest.mark.parametrize("sslmode", ["verify-ca", "verify-full"])
async def test_a_stranger_is_refused(pool: SQLPool, encrypted: DatabaseConfig, sslmode: str) -> None:
    """A certificate that nobody vouches for is an error at once, with both drivers."""
    config = replace(encrypted, sslmode=sslmode, sslrootcert=str(TLS / "client.pem"))  # type: ignore[arg-type]

    with pytest.raises(ConnectionRefused):
        pool.execute_query(config, "SELECT 1")
    with pytest.raises(ConnectionRefused):
        await pool.execute_query_async(config, "SELECT 1")
    await pool.stop_async()


async def test_encryption_that_the_server_does_not_offer_is_refused(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """sslmode=require against a server without TLS fails at once, and nothing goes over the wire in the clear."""
    config = replace(postgres, sslmode="require")

    with pytest.raises(ConnectionRefused):
        pool.execute_query(config, "SELECT 1")
    with pytest.raises(ConnectionRefused):
        await pool.execute_query_async(config, "SELECT 1")
    await pool.stop_async()


NO_FILE = r"sslrootcert='/no/such\.pem' is no file that can be read; correct the path, or write 'system'"
LOCKED = r"the key has a passphrase.*sslkey='\S+locked\.pem'"
NO_ROOT = r"sslmode='verify-\w+' needs sslrootcert: the file of the certificate authority, or 'system'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sslmode": "prefer", "sslrootcert": "/no/such.pem"}, NO_FILE),
        ({"sslmode": "require", "sslrootcert": "/no/such.pem"}, NO_FILE),
        ({"sslmode": "verify-full", "sslrootcert": "/no/such.pem"}, NO_FILE),
        ({"sslmode": "verify-ca"}, NO_ROOT),
        ({"sslmode": "verify-full"}, NO_ROOT),
        ({"sslmode": "require", "sslcert": "/no/c.pem", "sslkey": "/no/k.pem"}, r"sslcert='/no/c\.pem' is no file"),
        ({"sslmode": "prefer", "sslcert": str(TLS / "client.pem"), "sslkey": str(TLS / "locked.pem")}, LOCKED),
        ({"sslmode": "require", "sslcert": str(TLS / "client.pem"), "sslkey": str(TLS / "locked.pem")}, LOCKED),
        ({"sslmode": "verify-full", "sslrootcert": __file__}, "certificate"),
        ({"sslmode": "verify-full", "sslrootcert": "system"}, "certificate verify failed"),
    ],
)
async def test_certificates_that_cannot_be_used_are_refused_alike(
    pool: SQLPool,
    encrypted: DatabaseConfig,
    options: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A missing or useless file of certificates is named at once, by both drivers in the same words."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    config = replace(encrypted, **options)  # type: ignore[arg-type]

    await assert_refused_at_once(pool, config, message)


@pytest.mark.parametrize("server", ["encrypted", "postgres"])
@pytest.mark.parametrize("sslmode", ["allow", "prefer", "require"])
@pytest.mark.parametrize("useless", ["sslcert", "sslkey"])
async def test_a_clients_certificate_that_is_none_is_refused_at_once(
    pool: SQLPool, request: pytest.FixtureRequest, tmp_path: Path, server: str, sslmode: str, useless: str
) -> None:
    """Both drivers name the files after one attempt, also in the modes that would do without, and without TLS."""
    no_certificate = tmp_path / "none.pem"
    no_certificate.write_text("no certificate")
    no_certificate.chmod(0o600)
    files = {"sslcert": str(TLS / "client.pem"), "sslkey": str(TLS / "client.pem"), useless: str(no_certificate)}
    config = replace(request.getfixturevalue(server), sslmode=sslmode, **files)
    message = rf"certificates cannot be used.*{useless}='{no_certificate}'"

    await assert_refused_at_once(pool, config, message)


def test_a_key_that_others_may_read_is_refused_at_once(
    pool: SQLPool, encrypted: DatabaseConfig, tmp_path: Path
) -> None:
    """libpq insists that a key is private, and is asked once."""
    mine = tmp_path / "client.pem"
    shutil.copy(TLS / "client.pem", mine)
    mine.chmod(0o666)
    config = replace(encrypted, sslmode="require", sslcert=str(mine), sslkey=str(mine))

    with pytest.raises(ConnectionRefused, match="private key"):
        pool.execute_query(config, "SELECT 1")
    assert [figures["connect_attempts"] for figures in pool.get_stats()["pools"].values()] == [1]


@pytest.mark.parametrize("place", ["home", "environment"])
async def test_the_usual_root_file_is_found(
    pool: SQLPool, encrypted: DatabaseConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    """Without sslrootcert both drivers trust what PostgreSQL's own programs do."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    if place == "home":
        (tmp_path / ".postgresql").mkdir()
        shutil.copy(TLS / "ca.pem", tmp_path / ".postgresql" / "root.crt")
    else:
        monkeypatch.setenv("PGSSLROOTCERT", str(TLS / "ca.pem"))
    config = replace(encrypted, sslmode="verify-full")

    assert pool.execute_query(config, "SELECT 1") == [(1,)]
    assert await pool.execute_query_async(config, "SELECT 1") == [(1,)]
    await pool.stop_async()


async def test_another_host_name_is_refused(
    pool: SQLPool, encrypted: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verify-full refuses a trusted certificate of another name; verify-ca does not look at the name."""
    resolve = socket.getaddrinfo

    def resolve_here(host: Any, *args: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host in ("db.example", b"db.example") else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
    config = replace(encrypted, host="db.example", sslmode="verify-full", sslrootcert=str(TLS / "ca.pem"))

    with pytest.raises(ConnectionRefused, match=r"db\.example"):
        pool.execute_query(config, "SELECT 1")
    with pytest.raises(ConnectionRefused, match=r"db\.example"):
        await pool.execute_query_async(config, "SELECT 1")
    assert pool.execute_query(replace(config, sslmode="verify-ca"), "SELECT 1") == [(1,)]
    assert await pool.execute_query_async(replace(config, sslmode="verify-ca"), "SELECT 1") == [(1,)]
    await pool.stop_async()


@pytest.mark.parametrize("sslmode", ["prefer", "require"])
async def test_a_clients_certificate_is_shown(
    pool: SQLPool, postgres: DatabaseConfig, tmp_path: Path, sslmode: str
) -> None:
    """Both drivers show sslcert to a server that asks for one, also in the mode that would do without TLS."""
    mine = tmp_path / "client's 100%.pem"
    shutil.copy(TLS / "client.pem", mine)
    mine.chmod(0o600)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    context.load_verify_locations(TLS / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    assert postgres.port is not None
    with Proxy(postgres.port, context) as proxy:
        config = replace(
            postgres,
            host="localhost",
            port=proxy.port,
            sslmode=sslmode,
            sslcert=str(mine),
            sslkey=str(mine),  # type: ignore[arg-type]
        )
        assert pool.execute_query(config, "SELECT 1") == [(1,)]
        await pool.stop_async()
        assert proxy.certified
        assert all(proxy.certified)
        proxy.certified.clear()

        with SQLPool(SQLPoolSettings(max_connections=1)) as other:
            assert await other.execute_query_async(config, "SELECT 1") == [(1,)]
            assert proxy.certified == [True]
            await other.stop_async()


async def test_a_clients_certificate_does_not_force_tls(pool: SQLPool, postgres: DatabaseConfig) -> None:
    """With sslmode=prefer a server without TLS is used in the clear, although there is a certificate."""
    certificate = str(TLS / "client.pem")
    config = replace(postgres, sslmode="prefer", sslcert=certificate, sslkey=certificate)

    assert await pool.execute_query_async(config, "SELECT 1") == [(1,)]
    await pool.stop_async()
