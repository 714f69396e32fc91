"""Measuring contenders side by side: interleaved rounds, medians of ratios, a table against targets.

One round runs each contender once, in turn, so that whatever else the machine does falls on all of them; a ratio
is taken within a round, and the median over the rounds is reported.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

Runs = dict[str, list[float]]


@dataclass(frozen=True)
class Figure:
    """One measured figure. ``target`` is ``None`` for one that is only shown."""

    name: str
    value: float
    target: float | None = None
    at_least: bool = True
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def arguments(description: str) -> argparse.Namespace:
    """Parse a benchmark's command line: ``--quick`` for a short run whose figures are rough."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a short run: rough figures")
    return parser.parse_args()


def repeat(call: Callable[[], object]) -> Callable[[int], float]:
    """Return a contender that makes ``call`` a number of times and returns the seconds it took."""

    def run(count: int) -> float:
        repetitions = range(count)
        began = time.perf_counter()
        for _ in repetitions:
            call()
        return time.perf_counter() - began

    return run


def interleave(contenders: Mapping[str, Callable[[int], float]], *, rounds: int, count: int) -> Runs:
    """Run each contender once per round, the first round only to warm up.

    Args:
        contenders: by name, what does its work ``count`` times and returns the seconds that took.
        rounds: how many rounds count.
        count: how often the work is done in a round.

    Returns:
        by name, the seconds of one piece of work in each round.
    """
    runs: Runs = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            seconds = run(count) / count
            if number:
                runs[name].append(seconds)
    return runs


def ratio(runs: Runs, name: str, base: str) -> float:
    """Return the median over the rounds of how many times as long as ``base`` the contender ``name`` took."""
    return statistics.median(mine / other for mine, other in zip(runs[name], runs[base], strict=True))


def median(runs: Runs, name: str) -> float:
    """Return the median seconds of one piece of work."""
    return statistics.median(runs[name])


def report(title: str, figures: list[Figure], packages: tuple[str, ...] = ()) -> None:
    """Print the figures with their targets, what was met and what falls short."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    table = Table(title=title, caption=f"Python {platform.python_version()}, {os.cpu_count()} cores. {versions}")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    for figure in figures:
        sign = ">=" if figure.at_least else "<="
        table.add_row(
            figure.name,
            f"{figure.value:.3g} {figure.unit}",
            "" if figure.target is None else f"{sign} {figure.target:g} {figure.unit}",
            {None: "", True: "[green]ok[/]", False: "[red]short[/]"}[figure.met],
        )
    Console(width=120).print(table)
