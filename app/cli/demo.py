"""``poolwire demo`` and ``poolwire ask``: index a folder and answer questions about it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from app.agents import AgentError, DrainExceeded
from app.agents.failures import complaints
from app.agents.signals import stop_on_signals
from app.cli.display import Display, read_lines
from app.containers import ContainerError
from app.demo import Demo, DemoSettings, DemoStopped, Found, Skipped, default_folder, walk
from app.demo.folder import DEFAULT_SIZE_LIMIT
from app.pools.errors import PoolError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DRAIN_EXCEEDED = 3

EXAMPLES = ("What happens to a REQ socket after a timeout?", "Which connections does @inject give to an agent's call?")

Folder = Annotated[
    Path | None, typer.Argument(metavar="[FOLDER]", help="What to index; this project's docs and source unless given.")
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
FailureRate = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="The share of requests that the enricher refuses, to watch retries.")
]
Delay = Annotated[float, typer.Option(min=0.0, help="Seconds that each request to the enricher takes longer.")]
SizeLimit = Annotated[int, typer.Option(min=1, help="Bytes above which a file is left out.")]


def demo(
    folder: Folder = None,
    as_json: AsJSON = False,
    failure_rate: FailureRate = 0.0,
    delay: Delay = 0.0,
    size_limit: SizeLimit = DEFAULT_SIZE_LIMIT,
) -> None:
    """Index FOLDER with a crew of agents, then answer questions about it.

    Without a terminal it answers two example questions and exits. Ctrl-C stops cleanly at any moment; the exit
    code is 0 at the prompt, and 130 before it.
    """
    folder, only = (folder, ()) if folder is not None else default_folder()
    settings = DemoSettings(failure_rate=failure_rate, delay=delay, size_limit=size_limit, only=only)
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    _run(_demo(_checked(folder, settings), settings, as_json=as_json, interactive=interactive))


def ask(
    question: Annotated[str, typer.Argument(help="In plain words.")],
    folder: Folder = None,
    as_json: AsJSON = False,
    failure_rate: FailureRate = 0.0,
    delay: Delay = 0.0,
    size_limit: SizeLimit = DEFAULT_SIZE_LIMIT,
) -> None:
    """Answer one question about FOLDER, with the file and line of each sentence, and exit."""
    if not question.strip():
        raise _refused('the question is empty; ask something, such as: poolwire ask "what is a lease?" docs')
    folder, only = (folder, ()) if folder is not None else default_folder()
    settings = DemoSettings(failure_rate=failure_rate, delay=delay, size_limit=size_limit, only=only)
    _run(_ask(_checked(folder, settings), question, settings, as_json=as_json))


async def _demo(folder: Path, settings: DemoSettings, *, as_json: bool, interactive: bool) -> int:
    display = Display(Console(stderr=as_json))

    async def show(demo: Demo) -> None:
        started = time.monotonic()
        await display.progress(demo)
        seconds = time.monotonic() - started
        report = await demo.report()
        if as_json:
            answers = [await demo.ask(question) for question in EXAMPLES]
            _print_json(_as_json(demo, report, seconds) | {"answers": answers})
            return
        display.indexed(demo, report, seconds)
        if interactive:
            display.tables(demo)
            await _prompt(demo, display)
            return
        for question in EXAMPLES:
            display.answer(await demo.ask(question))
        display.tables(demo)

    return await _with_demo(folder, settings, display, show)


async def _ask(folder: Path, question: str, settings: DemoSettings, *, as_json: bool) -> int:
    display = Display(Console(stderr=True))

    async def show(demo: Demo) -> None:
        await display.progress(demo)
        answer = await demo.ask(question)
        if as_json:
            _print_json(answer)
        else:
            Display(Console()).answer(answer)

    return await _with_demo(folder, settings, display, show)


async def _prompt(demo: Demo, display: Display) -> None:
    """Answer what is typed, until the end of input or an interruption, which is how one leaves a prompt."""
    display.console.print("\nAsk something about this folder; Ctrl-D ends.")
    try:
        async for line in read_lines(demo, "[bold]?[/] ", display.console):
            if line.strip():
                display.answer(await demo.ask(line))
    except DemoStopped:
        display.console.print()


async def _with_demo(
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
        except (DrainExceeded, ExceptionGroup):
            if received:
                display.stopped(demo)
            raise
    return 0


def _checked(folder: Path, settings: DemoSettings) -> Path:
    """Return the folder to index; exit if there is nothing in it to index."""
    if not folder.exists():
        raise _refused(f"there is no folder {str(folder)!r}; name an existing one")
    if not folder.is_dir():
        raise _refused(f"{str(folder)!r} is not a folder; name the folder that it is in")
    left_out: list[Skipped] = []
    try:
        for entry in walk(folder, size_limit=settings.size_limit, only=settings.only):
            if isinstance(entry, Found):
                return folder
            left_out.append(entry)
    except OSError as error:
        raise _refused(f"the folder {str(folder)!r} cannot be read: {error.strerror}") from None
    reasons = sorted({str(entry.reason) for entry in left_out})
    why = f"all {len(left_out)} entries are left out ({', '.join(reasons)})" if left_out else "it is empty"
    raise _refused(f"there is nothing to index in {str(folder)!r}: {why}")


def _refused(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(EXIT_USAGE)


def _run(work: Coroutine[Any, Any, int]) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = asyncio.run(work)
    except (AgentError, PoolError, ContainerError, OSError, ExceptionGroup) as error:
        code = _failed(error)
    raise typer.Exit(code)


def _failed(error: Exception) -> int:
    """Say what ended the agents, a line for each failure, and return the exit code."""
    failures = [error] if not isinstance(error, ExceptionGroup) else list(error.exceptions)
    for failure in failures:
        typer.echo(f"error: {'; '.join(complaints(failure)) or f'{type(failure).__name__}: {failure}'}", err=True)
    cut_off = any(isinstance(failure, DrainExceeded) for failure in failures)
    return EXIT_DRAIN_EXCEEDED if cut_off else EXIT_FAILED


def _as_json(demo: Demo, report: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {
        "folder": str(demo.folder),
        "index": str(demo.index),
        "seconds": round(seconds, 3),
        "survey": demo.monitor.survey,
        "finished": demo.finished_jobs,
        **report,
        "agents": {
            server.agent.name: {"state": server.state, "handled": server.handled, "failed": server.failed}
            for server in demo.servers
        },
        "pools": demo.pools(),
    }


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()
