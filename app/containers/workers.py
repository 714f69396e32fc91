"""Threads for starting and stopping parts that may hang: nobody waits for one that was given up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class DaemonWorkers:
    """Runs functions in daemon threads, an idle one again before a new one is made.

    ``ThreadPoolExecutor`` is not used because the interpreter joins its threads when it exits: a part that hangs
    in its ``stop`` would keep the whole process from ending.

    Args:
        name: the threads' name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._idle = 0
        self._threads = 0
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Run ``function`` in a thread; the future has its result or its error, and cannot be cancelled."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # else nobody could set its result once its waiter was cancelled
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                self._threads += 1
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        self._work.put((future, function))
        return future

    def run_here(self, function: Callable[[], Any]) -> Future[Any]:
        """Run ``function``, which is known to end soon, in the caller's thread."""
        future: Future[Any] = Future()
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for it
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Let the threads end when they have done what they do."""
        for _ in range(self._threads):
            self._work.put(None)

    def _serve(self) -> None:
        while (task := self._work.get()) is not None:
            self._run(*task)

    def _run(self, future: Future[Any], function: Callable[[], Any]) -> None:
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for it
            failure = error
        with self._lock:
            self._idle += 1  # before the result is known: who waits for it may submit the next one at once
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)
