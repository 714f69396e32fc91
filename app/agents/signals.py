"""SIGTERM and SIGINT: the first asks for a clean stop, the second ends the process at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_HANDLED = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call ``stop`` at the first signal, in the running loop; exit with 128 + its number at the second.

    Args:
        stop: takes the signal; called in the event loop, so it may touch what belongs to the loop.
    """
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if received:
            log.error("%s again: the process ends now, without cleaning up", number.name)
            os._exit(128 + number)
        received.append(number)
        log.info("%s: stopping; once more to end at once", number.name)
        stop(number)

    for number in _HANDLED:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in _HANDLED:
            loop.remove_signal_handler(number)
