"""`poolwire keys new`."""

from typer.testing import CliRunner

from app.cli.keys import app
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
