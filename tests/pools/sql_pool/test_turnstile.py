"""The file beside a SQLite database that those who write to it lock."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.pools.sql_pool import DatabaseConfig, SQLPool, get_sqlite_config
from tests.support.descriptors import open_files

INSERT = "INSERT INTO numbers VALUES (1)"
NOBODY = 65534


@pytest.fixture
def config(tmp_path: Path) -> DatabaseConfig:
    """A database that nobody has open."""
    config = get_sqlite_config(tmp_path / "x.db")
    with SQLPool() as pool:
        pool.execute_query(config, "CREATE TABLE numbers (number INTEGER)")
    writers(config).unlink()
    return config


@pytest.fixture(params=[0o077, 0o000], ids=["umask 077", "umask 000"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """What this process takes from the rights to each file that it makes."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def writers(config: DatabaseConfig) -> Path:
    return Path(f"{config.database}-writer")


def mode(path: str | Path) -> int:
    return os.stat(path).st_mode & 0o777


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("rights", [0o664, 0o660, 0o600])
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_who_may_write_to_a_database_may_lock_it(
    pool: SQLPool, config: DatabaseConfig, rights: int, there: bool
) -> None:
    """The file has the database's mode, as SQLite's log has, whatever the umask, also one made with another mode."""
    os.chmod(config.database, rights)
    if there:
        writers(config).touch(0o644)
    pool.execute_query(config, INSERT)

    assert rights == mode(f"{config.database}-wal") == mode(writers(config))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_what_root_writes_to_stays_its_owners(pool: SQLPool, config: DatabaseConfig, there: bool) -> None:
    """The file that root makes belongs to the database's owner, as SQLite's log does."""
    os.chown(config.database, NOBODY, NOBODY)
    if there:
        writers(config).touch()
    pool.execute_query(config, INSERT)

    log, file = os.stat(f"{config.database}-wal"), os.stat(writers(config))
    assert (NOBODY, NOBODY) == (log.st_uid, log.st_gid) == (file.st_uid, file.st_gid)


def test_a_file_whose_mode_cannot_be_changed_is_locked(
    pool: SQLPool, config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only the owner may change a mode, or nobody an owner, the others write in turn all the same."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    writers(config).touch(0o666)
    os.chmod(config.database, 0o640)
    pool.execute_query(config, INSERT)

    assert 1 == open_files(writers(config).name)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_in_the_files_place_changes_nothing_else(
    pool: SQLPool, config: DatabaseConfig, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    """What a link in its place leads to keeps its mode, and the database can be written to."""
    other = tmp_path / "other"
    other.touch(0o600)
    link(other, writers(config))
    os.chmod(config.database, 0o666)
    pool.execute_query(config, INSERT)

    assert 0o600 == mode(other)
    assert [(1,)] == pool.execute_query(config, "SELECT number FROM numbers")
