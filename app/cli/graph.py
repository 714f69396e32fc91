"""``poolwire graph``: a container as a picture."""

from __future__ import annotations

import inspect
import sys
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from dependency_injector.containers import Container, DeclarativeContainer

from app.cli.ending import EXIT_USAGE, fail
from app.containers import ContainerError, Lifecycle
from app.containers.pictures import FORMATS, Picture
from app.demo import demo_container
from app.pools.errors import PoolError

app = typer.Typer(add_completion=False)


class Format(StrEnum):
    """How a graph is drawn."""

    TEXT = "text"
    MERMAID = "mermaid"
    DOT = "dot"


@app.command()
def graph(
    container: Annotated[
        str,
        typer.Option(
            "--container",
            "-c",
            help="The container's class, an instance, or a function that returns one, as package.module:name.",
        ),
    ] = "app.containers:AgentContainer",
    demo: Annotated[bool, typer.Option("--demo", help="Draw the container of `poolwire demo` instead.")] = False,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to draw it.")] = Format.TEXT,
    start: Annotated[bool, typer.Option("--start", help="Start and stop it; show how long each part took.")] = False,
) -> None:
    """Draw a container: what needs what, and in which order it starts.

    Named resources are those of the ``poolwire.toml`` in the working folder.
    """
    try:
        instance = demo_container(Path(":memory:"), "http://127.0.0.1:9") if demo else _load(container)
        if start:
            with Lifecycle(instance) as lifecycle:
                picture = Picture(instance, lifecycle.report)
        else:
            picture = Picture(instance)
    except (ContainerError, PoolError, LookupError) as error:
        fail(str(error), EXIT_USAGE)
    typer.echo(FORMATS[format.value](picture))


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    if not name:
        raise LookupError(f"--container {where!r}: write it as package.module:name")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise LookupError(f"--container {where!r}: {error}") from None
    is_class = isinstance(found, type) and issubclass(found, DeclarativeContainer)
    container = found() if is_class or _takes_nothing(found) else found
    if not isinstance(container, Container):
        raise LookupError(
            f"--container {where!r}: that is no container but a {type(found).__name__}; name a container's class, an "
            "instance, or a function without parameters that returns one"
        )
    return container


def _takes_nothing(found: Any) -> bool:
    return inspect.isfunction(found) and not inspect.signature(found).parameters
