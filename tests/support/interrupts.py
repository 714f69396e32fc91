"""Interrupting a call at random moments, as a user does with Ctrl-C."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

_AGAIN = 0.01
"""Seconds after which a signal is sent again: CPython can miss one that comes as it handles another event."""


def interrupt(step: Callable[[], object], times: int) -> None:
    """Call ``step`` again and again until a signal breaks it off with a KeyboardInterrupt, ``times`` times over."""
    armed: list[bool] = []

    def raise_once(_number: int, _frame: object) -> None:
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    choose = random.Random(times)
    # Some break off a finaliser, which cannot raise. pytest would keep what the report mentions.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    previous = signal.signal(signal.SIGALRM, raise_once)
    deadline = time.monotonic() + 60

    # A function of its own: CPython's handlers of a `try` do not cover the jump at the end of a loop in it.
    def until_broken_off() -> None:
        signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-5, 1e-3), _AGAIN)
        while armed:
            step()
            assert time.monotonic() < deadline

    try:
        for _ in range(times):
            signal.setitimer(signal.ITIMER_REAL, 0)
            with contextlib.suppress(KeyboardInterrupt):
                armed.append(True)
                until_broken_off()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        sys.unraisablehook = hook


def break_off(step: Callable[[], object], error: type[BaseException], module: ModuleType, number: int) -> bool:
    """Call ``step``, and raise ``error`` before an instruction of a module's code, as a signal's handler may.

    Not for a module that takes locks which outlive the test: it is raised between a lock and its ``with``, too, where
    CPython runs no handler.

    Args:
        step: what to call.
        error: what to raise.
        module: whose instructions count.
        number: how many of them come before.

    Returns:
        Whether it came to that instruction.
    """
    left = number

    def at_each_event(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == -1:
                raise error
        return at_each_event

    previous = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks at this as it begins to trace, for all frames
    sys.settrace(at_each_event)
    try:
        step()
    except error:
        pass
    finally:
        sys.settrace(previous)
    return left < 0
