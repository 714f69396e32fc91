"""The ``poolwire`` command itself."""

from importlib import metadata
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from app.cli.main import app

RUNNER = CliRunner()


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
    """``--help`` names every command, those in modules of their own too."""
    result = RUNNER.invoke(app, ["--help"])
    assert result.exit_code == 0
    groups = [name for name in ("keys", "dev", "graph", "migrate") if find_spec(f"app.cli.{name}")]
    for name in ("demo", "ask", *groups):
        assert name in result.output


def test_an_unknown_command_is_a_usage_error() -> None:
    """What is no command ends with exit code 2."""
    assert RUNNER.invoke(app, ["dance"]).exit_code == 2
