"""Another build of PostgreSQL, named by POOLWIRE_PG_BIN, and TLS spoken by the server itself where the build has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

import tests.support
from app.pools.errors import ConnectionRefused
from app.pools.sql_pool import SQLPool
from app.pools.sql_pool.embedded import EmbeddedPostgres
from app.pools.sql_pool.embedded_programs import BIN_VARIABLE

TLS = Path(tests.support.__file__).parent / "tls"


def programs_with_tls() -> Path | None:
    """Return the folder of a PostgreSQL of this machine that is built with TLS, if there is one."""
    found = shutil.which("postgres")
    if found is None:
        return None
    folder = Path(found).resolve().parent
    options = subprocess.run([folder / "pg_config", "--configure"], capture_output=True, text=True, check=False)
    return folder if "openssl" in options.stdout else None


PROGRAMS = programs_with_tls()
pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="this machine has no PostgreSQL of its own with TLS")


@pytest.fixture(scope="module")
def encrypting_server() -> Iterator[EmbeddedPostgres]:
    with tempfile.TemporaryDirectory(prefix="poolwire-tls-") as folder, pytest.MonkeyPatch.context() as environment:
        environment.setenv(BIN_VARIABLE, str(PROGRAMS))
        Path(folder).chmod(0o755)
        certificate = Path(folder) / "server.pem"
        shutil.copy(TLS / "server.pem", certificate)
        certificate.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(certificate, 65534, 65534)  # the server runs as nobody then
        settings = {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(certificate)}
        with EmbeddedPostgres(settings=settings) as server:
            yield server


def test_the_named_build_is_the_one_that_runs(encrypting_server: EmbeddedPostgres) -> None:
    """POOLWIRE_PG_BIN wins over the wheel."""
    assert PROGRAMS is not None
    said = subprocess.run([PROGRAMS / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    with psycopg.connect(encrypting_server.url()) as connection:
        (version,) = connection.execute("SHOW server_version").fetchone() or ("",)

    assert version.split()[0] in said


@pytest.mark.parametrize(
    ("sslmode", "authority", "encrypted"),
    [
        ("disable", None, False),
        ("allow", None, False),
        ("prefer", None, True),
        ("require", None, True),
        ("verify-ca", "ca.pem", True),
        ("verify-full", "ca.pem", True),
    ],
)
async def test_each_mode_encrypts_as_it_says(
    pool: SQLPool, encrypting_server: EmbeddedPostgres, sslmode: str, authority: str | None, encrypted: bool
) -> None:
    """Both drivers speak TLS to the server, or plain text, as the mode says; the server itself is asked."""
    trusted = None if authority is None else str(TLS / authority)
    config = replace(encrypting_server.config(), host="localhost", sslmode=sslmode, sslrootcert=trusted)  # type: ignore[arg-type]
    asked = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"

    assert pool.execute_query(config, asked) == [(encrypted,)]
    assert await pool.execute_query_async(config, asked) == [(encrypted,)]
    await pool.stop_async()


@pytest.mark.parametrize("sslmode", ["verify-ca", "verify-full"])
async def test_a_certificate_that_nobody_vouches_for_is_refused(
    pool: SQLPool, encrypting_server: EmbeddedPostgres, sslmode: str
) -> None:
    """At once, by both drivers."""
    config = replace(encrypting_server.config(), sslmode=sslmode, sslrootcert=str(TLS / "client.pem"))  # type: ignore[arg-type]

    with pytest.raises(ConnectionRefused):
        pool.execute_query(config, "SELECT 1")
    with pytest.raises(ConnectionRefused):
        await pool.execute_query_async(config, "SELECT 1")
    await pool.stop_async()
