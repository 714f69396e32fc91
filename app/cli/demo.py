"""``poolwire demo``: index a folder with a crew of agents and answer questions about it."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from app.cli.display import Display, read_lines
from app.cli.indexing import (
    AsJSON,
    Delay,
    FailureRate,
    Folder,
    SizeLimit,
    checked,
    folder_of,
    print_json,
    run,
    with_demo,
)
from app.demo import Demo, DemoSettings, DemoStopped
from app.demo.folder import DEFAULT_SIZE_LIMIT

EXAMPLES = ("What happens to a REQ socket after a timeout?", "Which connections does @inject give to an agent's call?")

app = typer.Typer(add_completion=False)


@app.command()
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
    folder, only = folder_of(folder)
    settings = DemoSettings(failure_rate=failure_rate, delay=delay, size_limit=size_limit, only=only)
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    run(_demo(checked(folder, settings), settings, as_json=as_json, interactive=interactive))


async def _demo(folder: Path, settings: DemoSettings, *, as_json: bool, interactive: bool) -> int:
    display = Display(Console(stderr=as_json))

    async def show(demo: Demo) -> None:
        started = time.monotonic()
        await display.progress(demo)
        seconds = time.monotonic() - started
        report = await demo.report()
        if as_json:
            answers = [await demo.ask(question) for question in EXAMPLES]
            print_json(_as_json(demo, report, seconds) | {"answers": answers})
            return
        display.indexed(demo, report, seconds)
        if interactive:
            display.tables(demo)
            await _prompt(demo, display)
            return
        for question in EXAMPLES:
            display.answer(await demo.ask(question))
        display.tables(demo)

    return await with_demo(folder, settings, display, show)


async def _prompt(demo: Demo, display: Display) -> None:
    """Answer what is typed, until the end of input or an interruption, which is how one leaves a prompt."""
    display.console.print("\nAsk something about this folder; Ctrl-D ends.")
    with contextlib.suppress(DemoStopped):
        async for line in read_lines(demo, "[bold]?[/] ", display.console):
            if line.strip():
                display.answer(await demo.ask(line))


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
