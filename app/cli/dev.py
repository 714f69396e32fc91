"""``poolwire dev``: what helps while developing."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from app.cli.ending import fail
from app.pools.core.ignored import keep_out_of_git
from app.pools.sql_pool.embedded import EmbeddedPostgres, EmbeddedPostgresError

app = typer.Typer(help="Helpers for local development.", no_args_is_help=True, add_completion=False)


@app.callback()
def dev() -> None:
    """Helpers for local development."""


@app.command()
def postgres(
    folder: Annotated[Path, typer.Argument(help="Where its data live; kept for the next start.")] = Path(
        ".poolwire/postgres"
    ),
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The TCP port; a free one unless given.")] = None,
) -> None:
    """Start a PostgreSQL in a folder, print its URL, and stop it with Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        server = EmbeddedPostgres(folder, port=port)
        keep_out_of_git(server.folder)  # its password is there
        with server:
            typer.echo(server.url())
            typer.echo(f"PostgreSQL runs in {server.folder}; stop it with Ctrl-C", err=True)
            code = server.wait()
            fail(f"PostgreSQL ended by itself with code {code}; see {server.log_file}")
    except (EmbeddedPostgresError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
