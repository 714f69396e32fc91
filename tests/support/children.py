"""Forking this process, for a moment."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

from tests.support.waiting import eventually


def in_child(call: Callable[[], object], seconds: float = 20.0) -> None:
    """Call ``call`` in a forked child that ends with it; fail if it raises, or takes longer than ``seconds``."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            call()
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        ended.extend([os.waitstatus_to_exitcode(status)] if pid else [])
        return bool(ended)

    try:
        eventually(has_ended, seconds)
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert [0] == ended
