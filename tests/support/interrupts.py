"""Interrupting a call at random moments, as a user does with Ctrl-C."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable


def interrupt(step: Callable[[], object], times: int) -> None:
    """Call ``step`` again and again until a signal breaks it off with a KeyboardInterrupt, ``times`` times over."""
    fired: list[int] = []

    def raise_once(number: int, frame: object) -> None:
        if not fired:
            fired.append(number)
            raise KeyboardInterrupt

    choose = random.Random(times)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # some break off a finaliser, which cannot raise
    previous = signal.signal(signal.SIGALRM, raise_once)
    deadline = time.monotonic() + 60
    try:
        for _ in range(times):
            fired.clear()
            try:
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(5e-5, 1e-3))
                while not fired:
                    step()
                    assert time.monotonic() < deadline
            except KeyboardInterrupt:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        sys.unraisablehook = hook
