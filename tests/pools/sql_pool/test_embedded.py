"""The embedded PostgreSQL: started in a folder, stopped in every way, started again."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.pools.sql_pool import SQLPool
from app.pools.sql_pool.embedded import EmbeddedPostgres, EmbeddedPostgresError, find_programs
from app.pools.sql_pool.embedded_folders import remove, remove_orphans
from tests.support.waiting import eventually


def folders() -> set[Path]:
    """Return the folders of temporary servers that there are."""
    return set(Path(tempfile.gettempdir()).glob("poolwire-postgres-*"))


def test_a_folder_keeps_its_data_port_and_password(tmp_path: Path) -> None:
    """A server stopped and started again is the same, also after SIGKILL; its folder stays, whatever else is in it."""
    folder = Path("/tmp") / f"poolwire-test-{os.getpid()}" / "server"
    try:
        with EmbeddedPostgres(folder) as server, SQLPool() as pool:
            url = server.url()
            pool.execute_query(server.config(), "CREATE TABLE kept (n int)")
            server.stop("kill")
            server.start()
            pool.execute_query(server.config(), "INSERT INTO kept VALUES (1)")
        (folder / "dump.sql").write_text("SELECT 1")
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


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder that an unprivileged server can enter, which pytest's own are not."""
    made = Path(tempfile.mkdtemp(prefix="poolwire-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_a_folder_with_other_files_is_left_as_it_is(place: Path) -> None:
    """A project's own folder, named by mistake, is refused, and keeps its owner, its mode and its files."""
    (place / "main.py").write_text("pass")
    (place / "data").mkdir()
    before = place.stat()

    with pytest.raises(EmbeddedPostgresError, match=f"{place} has other files than PostgreSQL's"):
        EmbeddedPostgres(place)
    after = place.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert {each.name for each in place.iterdir()} == {"main.py", "data"}


def test_a_path_too_long_for_a_socket_is_refused(place: Path) -> None:
    """The error says so, instead of the server's log, and nothing is made."""
    with pytest.raises(EmbeddedPostgresError, match="too long a path"):
        EmbeddedPostgres(place / ("x" * 100))
    assert not list(place.iterdir())


def test_a_port_that_is_taken_is_named(place: Path) -> None:
    """The error says which, and how to have another one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(EmbeddedPostgresError, match=f"port {port} is taken.*--port"):
            EmbeddedPostgres(place, port=port).start()
    with EmbeddedPostgres(place) as server:
        assert server.port == port


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program that makes a server."""
    source = f"import signal, sys; from app.pools.sql_pool.embedded import EmbeddedPostgres; {code}"
    command = [sys.executable, "-c", source, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_kill_while_the_data_are_made_costs_nothing(place: Path) -> None:
    """The next start begins anew, and starts."""
    folder = place / "server"
    with started("EmbeddedPostgres(sys.argv[1])", folder) as process:
        eventually(lambda: list(folder.glob("*/PG_VERSION")), 60)
        process.kill()

    with EmbeddedPostgres(folder) as server:
        assert server.running
    assert {each.name for each in folder.iterdir()} == {"data", "password", "port", "server.log"}


_WRITES = """
import sys
for number in range(1000):
    open(f"{sys.argv[1]}/{number}", "w").close()
"""


def test_what_is_still_being_written_is_removed(place: Path) -> None:
    """A folder that the orphans of a killed process write into is gone at the end, whenever they end."""
    folder = place / "begun"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", _WRITES, folder], stderr=subprocess.DEVNULL):
        eventually(lambda: len(list(folder.iterdir())) > 200)
        remove(folder)
        assert not folder.exists()


@pytest.mark.parametrize("made", ["PG_VERSION", "base/1/PG_VERSION"])
def test_ctrl_c_while_a_temporary_one_is_made_leaves_nothing(place: Path, made: str) -> None:
    """Its folder is removed although initdb's own programs go on for a moment."""
    for _ in range(2):
        with started("import tempfile; tempfile.tempdir = sys.argv[1]; EmbeddedPostgres()", place) as process:
            eventually(lambda: list(place.glob(f"*/*/{made}")), 60)
            process.send_signal(signal.SIGINT)
        assert not list(place.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_signal_left_of_a_temporary_one_is_removed_by_the_next(
    postgres_server: EmbeddedPostgres, number: signal.Signals
) -> None:
    """A process that could not remove its folder leaves it for a while only; those in use stay."""
    with started("\nwith EmbeddedPostgres() as server: print(server.folder, flush=True); signal.pause()") as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert (folder / "data").exists()
        remove_orphans()
        assert (folder / "data" / "PG_VERSION").exists()
        process.send_signal(number)

    def is_removed() -> bool:
        remove_orphans()  # the server may take a moment to end
        return not folder.exists()

    eventually(is_removed, 30)
    assert (postgres_server.folder / "data" / "PG_VERSION").exists()


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
