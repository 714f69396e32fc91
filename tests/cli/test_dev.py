"""``poolwire dev postgres``, as a process of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that an unprivileged server can enter, which pytest's own are not."""
    made = Path(tempfile.mkdtemp(prefix="poolwire-test-"))
    made.chmod(0o755)
    yield made / "postgres"
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_url_and_stops_on_a_signal(folder: Path, number: signal.Signals) -> None:
    """The first line is a URL that works; Ctrl-C ends the server with code 0."""
    command = [sys.executable, "-c", "from app.cli.dev import app; app()", "postgres", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        connection.close()
        assert (folder / ".gitignore").read_text() == "*\n"  # the password is in the folder
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=30)

    assert process.returncode == 0, errors
    assert "stopped" in errors
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_an_unusable_folder_is_an_error_that_says_why(tmp_path: Path) -> None:
    """A file in the folder's place ends the command with 1 and a sentence."""
    (tmp_path / "taken").write_text("not a folder")
    command = [sys.executable, "-c", "from app.cli.dev import app; app()", "postgres", str(tmp_path / "taken")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "taken" in done.stderr
