"""The ``poolwire`` command and its subcommands."""

from __future__ import annotations

import inspect
import re
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

_LINE_END_IN_A_SENTENCE = re.compile(r"(?<!\n)\n(?!\n)")


class _Commands(TyperGroup):
    """The commands, each of which is a module of its own that is imported when it is asked for.

    So ``poolwire keys`` does not wait for what only ``poolwire demo`` needs, nor fail without what another needs.
    """

    names = tuple(
        name for name in ("demo", "ask", "keys", "dev", "graph", "migrate") if find_spec(f"app.cli.{name}") is not None
    )

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands."""
        return list(self.names)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, which is imported now."""
        if cmd_name not in self.names:
            return None
        command = get_command(import_module(f"app.cli.{cmd_name}").app)
        command.name = cmd_name
        _fill_lines(command)
        return command


def _fill_lines(command: Any) -> None:
    """Have the terminal break the lines of help: Typer keeps those of a docstring below its first paragraph."""
    help = inspect.cleandoc(command.help or "").replace("``", "`")
    command.help = _LINE_END_IN_A_SENTENCE.sub(" ", help)
    for each in getattr(command, "commands", {}).values():
        _fill_lines(each)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poolwire {metadata.version('poolwire')}")
        raise typer.Exit


@app.callback()
def poolwire(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Agents with pooled ZMQ, SQL and HTTP connections, leased for one call."""
