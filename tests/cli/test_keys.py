"""`poolwire keys new`."""

import subprocess

import pytest
from typer.testing import CliRunner

from app.cli.keys import app
from app.pools.errors import ConfigError
from app.pools.zmq_pool import KeyPair, load_public_key

run = CliRunner().invoke


def test_new_makes_two_files_and_shows_no_secret(tmp_path):
    """The public file can be given away, the secret one is for its owner alone, and the output shows neither key."""
    result = run(app, ["new", "librarian", "--folder", str(tmp_path / "keys")])
    assert 0 == result.exit_code
    secret_file = tmp_path / "keys" / "librarian.key_secret"
    pair = KeyPair.load(secret_file)
    assert 0o600 == secret_file.stat().st_mode & 0o777
    assert pair.public == load_public_key(tmp_path / "keys" / "librarian.key")
    assert pair.secret.get_secret_value() not in result.output


def test_new_never_overwrites_a_key(tmp_path):
    """A second key of the same name is refused with an error that says so, and the first one stays."""
    run(app, ["new", "librarian", "--folder", str(tmp_path)])
    before = (tmp_path / "librarian.key_secret").read_text()
    result = run(app, ["new", "librarian", "--folder", str(tmp_path)])
    assert 1 == result.exit_code
    assert "never overwritten" in result.output
    assert before == (tmp_path / "librarian.key_secret").read_text()


def test_git_ignores_the_secret_key_and_not_the_public_one(tmp_path):
    """Whoever adds the whole folder to git commits the public keys alone; a `.gitignore` of the user's stays."""
    run(app, ["new", "librarian", "--folder", str(tmp_path / "keys")])
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    seen = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "keys/librarian.key\n" in seen.stdout
    assert "key_secret" not in seen.stdout
    (tmp_path / "keys" / ".gitignore").write_text("mine\n")
    run(app, ["new", "assistant", "--folder", str(tmp_path / "keys")])
    assert "mine\n" == (tmp_path / "keys" / ".gitignore").read_text()


@pytest.mark.parametrize("name", ["-x", "two\nlines", "a/b", ".hidden", ""])
def test_a_name_that_is_none_for_a_file_is_refused(tmp_path, name):
    """A line end, a dash at the beginning, or a path is an error, and no file is made."""
    result = run(app, ["new", "--folder", str(tmp_path / "keys"), "--", name])
    assert 1 == result.exit_code
    assert f"error: {name!r} is not a plain name for key files\n" == result.output
    assert not (tmp_path / "keys").exists()


def test_a_folder_that_is_none_is_an_error_that_says_so(tmp_path):
    """A file in the folder's place is named."""
    (tmp_path / "taken").write_text("")
    result = run(app, ["new", "librarian", "--folder", str(tmp_path / "taken")])
    assert 1 == result.exit_code
    assert f"error: {tmp_path / 'taken'} is no folder; name one for the key files\n" == result.output


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(users_folder):
    """The error says which folder and why."""
    users_folder.chmod(0o500)
    result = run(app, ["new", "librarian", "--folder", str(users_folder)])
    assert 1 == result.exit_code
    assert f"error: no key files can be made in {users_folder}: Permission denied\n" == result.output


def test_a_key_file_that_is_missing_is_said_to_be(tmp_path):
    """The error says that there is no such file, and how one is made."""
    with pytest.raises(ConfigError, match=r"there is no key file .*missing\.key; `poolwire keys new NAME` makes one"):
        load_public_key(tmp_path / "missing.key")
