"""The ``poolwire`` command itself."""

import os
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
RUNNER = CliRunner()

# What stands for Ctrl-C while a module is imported, which takes a second or two in all.
INTERRUPTED = """
import os, signal, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
sys.argv[1:] = {arguments!r}
from app.cli.entry import main
main()
"""

IMPORTED = """
import sys
from app.cli.entry import main
sys.argv[1:] = {arguments!r}
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_version() -> None:
    """``--version`` prints the distribution's version."""
    try:
        version = metadata.version("poolwire")
    except metadata.PackageNotFoundError:
        pytest.skip("poolwire is not installed here")
    result = RUNNER.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"poolwire {version}\n"


def test_help_lists_the_commands() -> None:
    """``--help`` names every command, each of which is a module of its own."""
    result = RUNNER.invoke(app, ["--help"])
    assert result.exit_code == 0
    for name in ("demo", "ask", "keys", "dev", "graph", "migrate"):
        assert (name in result.output) is (find_spec(f"app.cli.{name}") is not None)


def test_an_unknown_command_is_a_usage_error() -> None:
    """What is no command ends with exit code 2."""
    assert RUNNER.invoke(app, ["dance"]).exit_code == 2


@pytest.mark.parametrize("module", ["typer", "app.cli.keys", "zmq"])
def test_an_interruption_while_modules_are_imported_is_quiet(module: str) -> None:
    """Ctrl-C in the command's first second ends it with 130, as a shell has it, and without a traceback."""
    done = _python(INTERRUPTED.format(module=module, arguments=["keys", "--help"]))
    assert done.returncode == 130, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["keys", "dev", "migrate"])
def test_a_command_does_not_wait_for_the_modules_of_the_demo(command: str) -> None:
    """Making keys imports neither the agents nor a web client."""
    done = _python(IMPORTED.format(arguments=[command, "--help"]))
    assert done.returncode == 0, done.stderr
    assert {"app.demo", "app.agents", "aiohttp", "requests"}.isdisjoint(done.stderr.split())


def test_help_breaks_no_line_in_a_sentence() -> None:
    """The lines of a docstring are not those of the help, which has the terminal's width."""
    result = RUNNER.invoke(app, ["demo", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert "the exit code is 0 at the prompt, and 130 before it." in re.sub(" +", " ", result.output)


def test_a_command_without_subcommands_promises_none() -> None:
    """The usage of ``graph`` has its options alone."""
    result = RUNNER.invoke(app, ["graph", "--help"], env={"TERM": "dumb"})
    assert re.search(r"graph \[OPTIONS\] *$", result.output, re.MULTILINE)
    assert "COMMAND" not in result.output
