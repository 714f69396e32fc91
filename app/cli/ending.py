"""How a command that cannot go on ends: one line on standard error, and an exit code."""

from __future__ import annotations

from typing import NoReturn

import typer

EXIT_FAILED = 1
EXIT_USAGE = 2


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Say what is wrong, and exit with ``code``."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)
