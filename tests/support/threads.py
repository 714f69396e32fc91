"""Calling something in many threads at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

T = TypeVar("T")


def refuse_threads(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have threads whose names begin so fail to start, as all do at the system's limit."""
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


def interrupt_start(monkeypatch: pytest.MonkeyPatch, name: str, *, begun: bool) -> None:
    """Have Ctrl-C come, once, as a thread of this name is started: when it runs already, or before it ever does.

    What was to be run is kept, as CPython does it.
    """
    start = threading.Thread.start
    limbo: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        if thread.name != name or limbo:
            start(thread)
            return
        limbo.append(thread)
        if begun:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)


def together(call: Callable[[], T], threads: int) -> list[T]:
    """Call ``call`` once in each of so many threads, all at once; return the results, or raise the first error."""
    gate = threading.Barrier(threads)

    def enter() -> T:
        gate.wait(30)
        return call()

    with ThreadPoolExecutor(threads) as workers:
        return [each.result(30) for each in [workers.submit(enter) for _ in range(threads)]]
