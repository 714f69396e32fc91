"""TLS to PostgreSQL, by a proxy that speaks it, for the server of the tests is built without."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import tests.support
from app.pools.errors import ConnectionRefused
from app.pools.sql_pool import DatabaseConfig, SQLPool
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
