"""What the demo shows: a progress bar, tables, answers, and a prompt that a signal can interrupt."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.demo import Demo

_REFRESH = 0.1  # seconds
_LISTED = 10


class Display:
    """Writes to one console.

    Args:
        console: where to; without a terminal the bar is left out.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    async def progress(self, demo: Demo) -> None:
        """Show a bar until everything is indexed. Raises what ``Demo.indexed`` raises."""
        indexing = asyncio.ensure_future(demo.indexed())
        columns = (
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        try:
            with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
                task = bar.add_task("looking for files", total=None)
                while not indexing.done():
                    await asyncio.wait((indexing,), timeout=_REFRESH)
                    if demo.monitor.surveyed:
                        bar.update(
                            task,
                            description="indexing",
                            total=demo.monitor.survey["queued"],
                            completed=demo.monitor.finished_jobs,
                        )
            indexing.result()
        finally:
            indexing.cancel()

    def indexed(self, demo: Demo, report: dict[str, Any], seconds: float) -> None:
        """Say what the index holds and what was left out of it, with the reasons."""
        jobs, survey = report["jobs"], demo.monitor.survey
        say = self.console.print
        say(
            f"[bold]{escape(str(demo.folder))}[/]: {jobs['done']} files with {jobs['passages']} passages in the index; "
            f"{demo.finished_jobs} were new or changed, {survey['unchanged']} unchanged, {survey['removed']} removed "
            f"[dim]({seconds:.1f} s)[/]"
        )
        if demo.monitor.failures:
            say(f"{demo.monitor.failures} attempts failed and were repeated; {demo.enricher.refused} refused requests")
        left_out = report["left_out"]
        for reason, count in sorted(Counter(entry["reason"] for entry in left_out).items()):
            examples = [entry for entry in left_out if entry["reason"] == reason][:_LISTED]
            shown = ", ".join(_described(entry) for entry in examples)
            more = f", and {count - len(examples)} more" if count > len(examples) else ""
            say(f"left out, {reason}: {count} [dim]({escape(shown)}{more})[/]")

    def tables(self, demo: Demo) -> None:
        """Show the agents and the pools."""
        agents = Table("agent", "receives on", "state", "handled", "failed", title="Agents", title_justify="left")
        for server in demo.servers:
            endpoint, handled, failed = server.agent.endpoint, server.handled, server.failed
            if server.agent is demo.enricher:  # no socket of an agent's: it serves HTTP, and counts by itself
                endpoint, handled, failed = "HTTP", demo.enricher.answered, demo.enricher.refused
            agents.add_row(server.agent.name, str(endpoint or "-"), str(server.state), str(handled), str(failed))
        pools = Table("pool", "connections", "in use", "reused", "opened", title="Pools", title_justify="left")
        for name, metrics in demo.pools().items():
            columns = ("total_connections", "active_connections", "pool_hits", "pool_misses")
            pools.add_row(name, *(str(metrics[column]) for column in columns))
        self.console.print()
        self.console.print(agents)
        self.console.print(pools)

    def answer(self, answer: dict[str, Any]) -> None:
        """Show a question, its answer and where it stands."""
        say = self.console.print
        say(f"\n[bold]{escape(answer['question'])}[/]", soft_wrap=True)
        for citation in answer["citations"]:
            say(Padding(escape(citation["text"]), (0, 0, 0, 2)))
            place = f"{citation['path']}:{citation['line']}"
            heading = f"  {citation['heading']}" if citation["heading"] else ""
            say(f"    [cyan]{escape(place)}[/][dim]{escape(heading)}[/]", soft_wrap=True)
        if not answer["citations"]:
            say(Padding(escape(answer["text"]), (0, 0, 0, 2)))
        for note in answer["notes"]:
            say(f"  [yellow]note: {escape(note)}[/]", soft_wrap=True)

    def stopping(self, number: signal.Signals) -> None:
        """Say that a signal was understood: what is in flight may take its time to finish."""
        after_what_the_terminal_echoes = "\n" if self.console.is_terminal else ""
        self.console.print(f"{after_what_the_terminal_echoes}{number.name}: stopping; once more to end at once")

    def stopped(self, demo: Demo) -> None:
        """Say what was in flight when the demo was stopped, and what is left for the next time."""
        summary = demo.summary
        drained = f"{sum(summary.drained.values())} in flight finished" if summary else "what was late was cut off"
        left = max(0, demo.scanner.jobs_at_start - demo.finished_jobs)
        self.console.print(
            f"stopped: {drained}, {demo.finished_jobs} files indexed in this run, {left} left for the next one"
        )


async def read_lines(demo: Demo, prompt: str, console: Console) -> AsyncIterator[str]:
    """Yield the lines that are typed, until the end of input.

    The event loop watches the terminal, because a thread in ``input()`` could not be interrupted.

    Raises:
        DemoStopped: the demo was stopped meanwhile.
    """
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(descriptor, lambda: lines.put_nowait(os.read(descriptor, 65536).decode(errors="replace")))
    try:
        while True:
            console.print(prompt, end="")
            line = await demo.until_stopped(lines.get())
            if not line:
                console.print()
                return
            yield line
    finally:
        loop.remove_reader(descriptor)


def _described(entry: dict[str, str]) -> str:
    return f"{entry['path']}: {entry['detail']}" if entry["detail"] else entry["path"]
