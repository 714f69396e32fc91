"""The embedded PostgreSQL: started in a folder, stopped in every way, started again."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

import psycopg
import pytest

from app.pools.sql_pool import SQLPool
from app.pools.sql_pool.embedded import EmbeddedPostgres, EmbeddedPostgresError, find_programs


def folders() -> set[Path]:
    """Return the folders of temporary servers that there are."""
    return set(Path(tempfile.gettempdir()).glob("poolwire-pg-*"))


def test_a_folder_keeps_its_data_port_and_password(tmp_path: Path) -> None:
    """A server stopped and started again is the same, also after SIGKILL; a kept folder stays."""
    folder = Path("/tmp") / f"poolwire-test-{os.getpid()}" / "server"
    try:
        with EmbeddedPostgres(folder) as server, SQLPool() as pool:
            url = server.url()
            pool.execute_query(server.config(), "CREATE TABLE kept (n int)")
            server.stop("kill")
            server.start()
            pool.execute_query(server.config(), "INSERT INTO kept VALUES (1)")
        with EmbeddedPostgres(folder) as server, SQLPool() as pool:
            assert server.url() == url
            assert pool.execute_query(server.config(unix_socket=True), "SELECT n FROM kept") == [(1,)]
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def test_it_runs_unprivileged_on_loopback_with_a_password(postgres_server: EmbeddedPostgres) -> None:
    """No root process, no other address, no login without the password, which only the owner can read."""
    assert postgres_server.pid is not None
    assert os.stat(f"/proc/{postgres_server.pid}").st_uid != 0
    assert stat.S_IMODE((postgres_server.folder / "password").stat().st_mode) == 0o600
    with psycopg.connect(postgres_server.url()) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
        assert connection.execute("SHOW password_encryption").fetchone() == ("scram-sha-256",)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host="127.0.0.1", port=postgres_server.port, user="postgres", dbname="postgres", password="x")


def test_a_temporary_one_leaves_nothing() -> None:
    """Without a folder everything is removed at the end."""
    with EmbeddedPostgres() as server:
        folder = server.folder
        assert server.running
    assert not folder.exists()
    assert not server.running


def test_missing_programs_are_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POOLWIRE_PG_BIN that names no PostgreSQL is named in the error."""
    monkeypatch.setenv("POOLWIRE_PG_BIN", str(tmp_path))

    temporary = folders()
    with pytest.raises(EmbeddedPostgresError, match=f"{tmp_path} holds no postgres program"):
        EmbeddedPostgres()
    assert folders() <= temporary
    monkeypatch.delenv("POOLWIRE_PG_BIN")
    assert (find_programs() / "postgres").exists()


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    """The last words of its log are in the error, and its temporary folder is removed."""
    server = EmbeddedPostgres(settings={"no_such_setting": "1"})
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"), server:
        pass
    assert not server.folder.exists()


def test_a_second_server_in_a_folder_leaves_the_log_of_the_first(postgres_server: EmbeddedPostgres) -> None:
    """It is refused, and what the first one has logged is still there."""
    before = postgres_server.log_file.read_text()
    second = EmbeddedPostgres(postgres_server.folder, port=postgres_server.port)
    with pytest.raises(EmbeddedPostgresError, match="already exists"):
        second.start()
    assert before
    assert postgres_server.log_file.read_text().startswith(before)
    with psycopg.connect(postgres_server.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
