"""What ``poolwire demo`` and ``poolwire ask`` share: their options, and a demo that runs for the time of a command."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from app.agents import AgentError, DrainExceeded
from app.agents.failures import complaints
from app.agents.signals import stop_on_signals
from app.cli.display import Display
from app.cli.ending import EXIT_FAILED, EXIT_USAGE, fail
from app.containers import ContainerError
from app.demo import Demo, DemoSettings, DemoStopped, Found, Skipped, default_folder, walk
from app.demo.place import is_damage
from app.pools.errors import PoolError

EXIT_DRAIN_EXCEEDED = 3

Folder = Annotated[
    Path | None, typer.Argument(metavar="FOLDER", help="What to index; this project's docs and source unless given.")
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
FailureRate = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="The share of requests that the enricher refuses, to watch retries.")
]
Delay = Annotated[float, typer.Option(min=0.0, help="Seconds that each request to the enricher takes longer.")]
SizeLimit = Annotated[int, typer.Option(min=1, help="Bytes above which a file is left out.")]


def folder_of(folder: Path | None) -> tuple[Path, tuple[str, ...]]:
    """Return the folder to index, and which of its entries are, all of them if none is named."""
    return default_folder() if folder is None else (folder, ())


def checked(folder: Path, settings: DemoSettings) -> Path:
    """Return the folder to index; exit if there is nothing in it to index."""
    if not folder.exists():
        fail(f"there is no folder {str(folder)!r}; name an existing one", EXIT_USAGE)
    if not folder.is_dir():
        fail(f"{str(folder)!r} is not a folder; name the folder that it is in", EXIT_USAGE)
    try:
        why = _why_nothing(folder, settings)
    except OSError as error:
        fail(f"the folder {str(folder)!r} cannot be read: {error.strerror}", EXIT_USAGE)
    if why:
        fail(f"there is nothing to index in {str(folder)!r}: {why}", EXIT_USAGE)
    return folder


def _why_nothing(folder: Path, settings: DemoSettings) -> str:
    """Return why there is nothing to index; nothing if there is something."""
    left_out: list[Skipped] = []
    for entry in walk(folder, size_limit=settings.size_limit, only=settings.only):
        if isinstance(entry, Found):
            return ""
        left_out.append(entry)
    reasons = sorted({str(entry.reason) for entry in left_out})
    return f"all {len(left_out)} entries are left out ({', '.join(reasons)})" if left_out else "it is empty"


async def with_demo(
    folder: Path, settings: DemoSettings, display: Display, show: Callable[[Demo], Awaitable[None]]
) -> int:
    """Run the demo for the time of ``show``; return the exit code.

    A signal that interrupts it stops the agents cleanly; the code is then 128 and its number, as shells have it.
    """
    stop = asyncio.Event()
    received: list[int] = []

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        display.stopping(number)
        stop.set()

    with stop_on_signals(on_signal):
        demo = Demo(folder, settings, stop=stop)
        try:
            async with demo:
                await show(demo)
        except DemoStopped:
            display.stopped(demo)
            return 128 + received[0]
        except Exception as error:
            if received:
                display.stopped(demo)
            for failure in _failures(error):
                if is_damage(failure):
                    failure.add_note(f"the index is damaged; remove {demo.index}, and it is made again")
            raise
    return 0


def run(work: Coroutine[Any, Any, int]) -> None:
    """Run a command's work, and exit with the code that it returns, or that its failure has."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = asyncio.run(work)
    except (AgentError, PoolError, ContainerError, OSError, ExceptionGroup) as error:
        code = _told(_failures(error))
    raise typer.Exit(code)


def _failures(error: Exception) -> tuple[Exception, ...]:
    return error.exceptions if isinstance(error, ExceptionGroup) else (error,)


def _told(failures: tuple[Exception, ...]) -> int:
    """Say what ended the agents, a line for each failure, each once; return the exit code."""
    for line in dict.fromkeys(map(_line, failures)):
        typer.echo(f"error: {line}", err=True)
    cut_off = any(isinstance(failure, DrainExceeded) for failure in failures)
    return EXIT_DRAIN_EXCEEDED if cut_off else EXIT_FAILED


def _line(failure: Exception) -> str:
    if told := complaints(failure):
        return "; ".join(told)
    notes = "; ".join(getattr(failure, "__notes__", ()))
    kind = "" if isinstance(failure, OSError) else f"{type(failure).__name__}: "
    return f"{kind}{failure} ({notes})" if notes else f"{kind}{failure}"


def print_json(value: dict[str, Any]) -> None:
    """Write one JSON object to standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()
