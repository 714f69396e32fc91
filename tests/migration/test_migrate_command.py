"""``poolwire migrate``: options and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.migrate import app

ROOT = Path(__file__).parents[2]
SITE = "import sqlite3\n\n\ndef f(p):\n    c = sqlite3.connect(p)\n    c.close()\n"


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one finding, in which we are."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "agent.py").write_text(SITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def run(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=input, catch_exceptions=False)


def test_exit_codes(code: Path) -> None:
    """0 is clean, 1 findings, 2 a wrong option, 3 unparsable files under --strict-parse."""
    assert run("scan", "code").exit_code == 1
    assert run("scan", "code", "--exit-zero").exit_code == 0
    assert run("scan", "nowhere").exit_code == 2
    assert run("scan", "code", "--format", "xml").exit_code == 2
    (code / "broken.py").write_text("def f(:\n")
    assert run("scan", "code", "--strict-parse").exit_code == 3
    (code / "agent.py").unlink()
    assert run("scan", "code").exit_code == 0


def test_json_goes_to_standard_output_and_problems_beside_it(code: Path) -> None:
    """JSON is alone on standard output; a file that does not parse is named on standard error."""
    (code / "broken.py").write_text("def f(:\n")
    result = run("scan", "code", "--format", "json")
    (site,) = json.loads(result.stdout)
    assert (site["file"], site["line"], site["kind"]) == ("code/agent.py", 5, "sql_connect")
    assert "code/broken.py:1: PM901" in result.stderr


def test_output_file(code: Path, tmp_path: Path) -> None:
    """--output writes the report to a file."""
    assert run("scan", "code", "-f", "html", "-o", "report.html").exit_code == 1
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert run("scan", "code", "-o", "no/such/folder").exit_code == 2


def test_baseline_makes_old_findings_pass(code: Path) -> None:
    """After `baseline`, only a new finding fails `check`."""
    assert run("check", "code").exit_code == 1
    assert run("baseline", "code").exit_code == 0
    assert run("check", "code", "--baseline", "poolwire-baseline.json").exit_code == 0
    (code / "new.py").write_text(SITE)
    result = run("check", "code", "--baseline", "poolwire-baseline.json")
    assert result.exit_code == 1
    assert "code/new.py:5:9: PM201 sqlite3.connect" in result.stdout
    assert "agent.py" not in result.stdout


def test_baseline_from_the_configuration(code: Path, tmp_path: Path) -> None:
    """The configuration names the baseline, relative to itself, from whichever folder one runs."""
    run("baseline", "code")
    (tmp_path / "pyproject.toml").write_text("[tool.poolwire.migrate]\nbaseline = 'poolwire-baseline.json'\n")
    assert run("check", "code").exit_code == 0
    os.chdir(code)
    assert run("check", ".").exit_code == 0


def test_wrong_configuration_is_a_usage_error(code: Path, tmp_path: Path) -> None:
    """A mistake in pyproject.toml exits with 2 and names the key."""
    (tmp_path / "pyproject.toml").write_text("[tool.poolwire.migrate]\nalow = ['x']\n")
    result = run("scan", "code")
    assert result.exit_code == 2
    assert "alow" in result.stderr


def test_explain(code: Path) -> None:
    """`explain` says what a code means, or lists the codes."""
    assert "Instead" in run("explain", "pm101").stdout
    result = run("explain", "PM1")
    assert result.exit_code == 2
    assert "PM101" in result.stderr


def test_rewrite_shows_a_diff_and_writes_nothing(code: Path) -> None:
    """`rewrite` shows a diff, exits with 1, and leaves the file."""
    pytest.importorskip("libcst")
    result = run("rewrite", "code")
    assert result.exit_code == 1
    assert "+    with sql_pool.connection(get_sqlite_config(p)) as lease:" in result.stdout
    assert (code / "agent.py").read_text() == SITE


def test_rewrite_apply(code: Path) -> None:
    """`rewrite --apply` writes, and a second time there is nothing left."""
    pytest.importorskip("libcst")
    assert run("rewrite", "code", "--apply").exit_code == 0
    written = (code / "agent.py").read_text()
    assert "sqlite3.connect" not in written
    assert run("rewrite", "code").exit_code == 0
    assert run("check", "code").exit_code == 0


@pytest.mark.parametrize(("answer", "written"), [("y\n", True), ("n\n", False)])
def test_rewrite_interactive(code: Path, answer: str, written: bool) -> None:
    """`rewrite --interactive` asks before each file."""
    pytest.importorskip("libcst")
    result = run("rewrite", "code", "--interactive", input=answer)
    assert result.exit_code == (0 if written else 1)
    assert ("sqlite3.connect" not in (code / "agent.py").read_text()) is written


def test_rewrite_only(code: Path) -> None:
    """`rewrite --only` leaves the other codes alone, and an unknown code is a usage error."""
    pytest.importorskip("libcst")
    assert run("rewrite", "code", "--only", "PM101").exit_code == 0
    assert run("rewrite", "code", "--only", "PM999").exit_code == 2


def test_rewrite_without_libcst_names_the_extra(code: Path, tmp_path: Path) -> None:
    """Without libcst, scanning works and rewriting names the extra that brings it."""
    blocker = tmp_path / "blocked"
    blocker.mkdir()
    (blocker / "libcst.py").write_text("raise ModuleNotFoundError(\"No module named 'libcst'\", name='libcst')\n")
    environment = {**os.environ, "PYTHONPATH": f"{blocker}{os.pathsep}{ROOT}"}
    program = "from app.cli.migrate import app; app()"
    for command, exit_code, said in (("scan", 1, ""), ("rewrite", 2, "poolwire[migrate]")):
        done = subprocess.run(
            [sys.executable, "-c", program, command, "code"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, said in done.stderr) == (exit_code, True), done.stderr


def test_this_project_has_no_direct_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard passes on this project: outside the pools and the migration's own, nothing opens a connection."""
    monkeypatch.chdir(ROOT)
    result = run("check", "app", "--allow", "app/pools", "--no-cache")
    assert result.exit_code == 0, result.output


def test_guard_fails_on_a_new_connection_in_this_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard fails when an agent of this project builds a context."""
    monkeypatch.chdir(ROOT)
    agent = tmp_path / "agent.py"
    agent.write_text("import zmq\n\n\nclass A:\n    def __init__(self):\n        self.c = zmq.Context()\n")
    result = run("check", "app", str(agent), "--allow", "app/pools", "--no-cache")
    assert result.exit_code == 1
    assert f"{agent}:6" in result.stdout
