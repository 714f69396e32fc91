"""Calling something in many threads at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def together(call: Callable[[], T], threads: int) -> list[T]:
    """Call ``call`` once in each of so many threads, all at once; return the results, or raise the first error."""
    gate = threading.Barrier(threads)

    def enter() -> T:
        gate.wait(30)
        return call()

    with ThreadPoolExecutor(threads) as workers:
        return [each.result(30) for each in [workers.submit(enter) for _ in range(threads)]]
