"""Stopping at exit: what was published last leaves a process that ends without a stop as well."""

from __future__ import annotations

import atexit
import logging
import weakref
from typing import Protocol

from app.pools.errors import LeaseLeaked
from app.pools.zmq_pool.context import shared_context

log = logging.getLogger(__name__)

_TIMEOUT = 2.0


class Stoppable(Protocol):
    """A pool."""

    def stop(self, timeout: float = ...) -> None:
        """Stop it; does nothing if it is stopped."""


_started: weakref.WeakSet[Stoppable] = weakref.WeakSet()


def stop_at_exit(pool: Stoppable) -> None:
    """Have ``pool`` stopped when the process ends."""
    if not _started:
        atexit.register(_stop_all)
    _started.add(pool)


def _stop_all() -> None:
    for pool in list(_started):
        try:
            pool.stop(_TIMEOUT)
        except LeaseLeaked as leaked:
            log.warning("%s", leaked)
    shared_context.finish(_TIMEOUT)
