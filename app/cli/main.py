"""The ``poolwire`` command and its subcommands."""

from __future__ import annotations

from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from app.cli import demo


class _Commands(TyperGroup):
    """The commands, and the groups, each of which is a module of its own that is imported when it is asked for.

    So ``poolwire ask`` does not wait for what only ``poolwire migrate`` needs, nor fail without it.
    """

    groups = tuple(name for name in ("keys", "dev", "graph", "migrate") if find_spec(f"app.cli.{name}"))

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands, then the groups."""
        return [*super().list_commands(ctx), *self.groups]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, or a group, which is imported now."""
        if cmd_name in self.groups:
            group = get_group(import_module(f"app.cli.{cmd_name}").app)
            group.name = cmd_name
            return group
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("ask")(demo.ask)


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
