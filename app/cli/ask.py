"""``poolwire ask``: answer one question about a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.cli.display import Display
from app.cli.ending import EXIT_USAGE, fail
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
from app.demo import Demo, DemoSettings
from app.demo.folder import DEFAULT_SIZE_LIMIT

EXAMPLE = 'poolwire ask "what happens to a REQ socket after a timeout?" docs'

app = typer.Typer(add_completion=False)


@app.command()
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
        fail(f"the question is empty; ask something, such as: {EXAMPLE}", EXIT_USAGE)
    folder, only = folder_of(folder)
    settings = DemoSettings(failure_rate=failure_rate, delay=delay, size_limit=size_limit, only=only)
    run(_ask(checked(folder, settings), question, settings, as_json=as_json))


async def _ask(folder: Path, question: str, settings: DemoSettings, *, as_json: bool) -> int:
    display = Display(Console(stderr=True))

    async def show(demo: Demo) -> None:
        await display.progress(demo)
        answer = await demo.ask(question)
        if as_json:
            print_json(answer)
        else:
            Display(Console()).answer(answer)

    return await with_demo(folder, settings, display, show)
