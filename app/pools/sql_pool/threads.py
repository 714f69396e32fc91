"""The pool's own threads, which may not be had: at the system's limit, and at the interpreter's end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def start_thread(work: Callable[[], None], name: str) -> None:
    """Start a daemon thread.

    Raises:
        RuntimeError: there can be none.
    """
    if sys.is_finalizing():  # CPython 3.11 would wait for ever for the thread to begin
        raise RuntimeError("can't start new thread at interpreter shutdown")
    threading.Thread(target=work, name=name, daemon=True).start()


class Call(Future[T]):
    """A call for an executor, to be submitted to it, and itself the future of what it returns.

    The executor's own future would not do: ``submit`` queues a call before it starts a thread for it, and has no future
    to return if that fails, although another of its threads may do the call yet. This one can be cancelled then, and
    if it cannot, it has begun.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__()
        self._calls = [call]

    def __call__(self) -> None:
        """Do the call, in one of the executor's threads."""
        if not self.set_running_or_notify_cancel():
            return
        try:
            self.set_result(self._calls.pop()())
        except BaseException as error:  # noqa: BLE001 - it is raised where the call is waited for
            self.set_exception(error)
            del self  # to which the error's traceback would lead, and so to the error itself

    def cancel(self) -> bool:
        """Call it off, if it has not begun; return whether it was, and never will be, done."""
        cancelled = super().cancel()
        if cancelled:
            self._calls.clear()  # it may stay in the executor's queue
        return cancelled
