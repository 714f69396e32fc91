"""What ``make`` does before it can run anything of the project's."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with the Makefile and the files that it looks at."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def _make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)


def test_an_environment_that_was_half_made_is_made_anew(checkout: Path) -> None:
    """Whoever kills the first ``make run`` need not clean up before the second one."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    half = checkout / ".venv" / version / "bin"
    half.mkdir(parents=True)
    (half / "python").symlink_to(sys.executable)
    planned = _make(checkout, "--dry-run", "run", f"PYTHON={sys.executable}")
    assert planned.returncode == 0, planned.stderr
    assert f"-m venv .venv/{version}" in planned.stdout
    (half / "pip").touch()
    assert "-m venv" not in _make(checkout, "--dry-run", "run", f"PYTHON={sys.executable}").stdout


def test_an_interpreter_that_is_not_there_is_said_to_be_missing(checkout: Path) -> None:
    """A misspelt ``PYTHON=`` ends with a sentence that names it."""
    done = _make(checkout, "run", "PYTHON=python3.99")
    assert done.returncode != 0
    assert "poolwire needs Python 3.11 to 3.13, and python3.99 is not found; choose one: " in done.stderr


def test_clean_keeps_the_data_of_a_database(checkout: Path) -> None:
    """The demo's index goes; what ``poolwire dev postgres`` keeps beside it stays."""
    kept = checkout / ".poolwire" / "postgres" / "password"
    kept.parent.mkdir(parents=True)
    kept.touch()
    index = checkout / ".poolwire" / "index.sqlite"
    index.touch()
    assert _make(checkout, "clean").returncode == 0
    assert kept.exists()
    assert not index.exists()
