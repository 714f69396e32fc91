"""``poolwire keys``: key files for encrypted ZMQ connections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.ending import fail
from app.pools.errors import ConfigError
from app.pools.zmq_pool import KeyPair

app = typer.Typer(help="Make keys for encrypted ZMQ connections.", no_args_is_help=True, add_completion=False)


@app.callback()
def keys() -> None:
    """Make keys for encrypted ZMQ connections."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose keys these are, such as the service's name.")],
    folder: Annotated[Path, typer.Option("--folder", "-d", help="Where to put the two files.")] = Path("keys"),
) -> None:
    """Make NAME.key, to give to the others, and NAME.key_secret, readable for you alone."""
    try:
        public_file, secret_file = KeyPair.new().write(folder, name)
    except ConfigError as error:
        fail(str(error))
    typer.echo(f"{public_file}  the public key: a server's goes to its clients, a client's into the allow-list")
    typer.echo(f"{secret_file}  the secret key: it stays with its owner, mode 0600")
