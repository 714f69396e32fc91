"""Stopping at exit: what was published last leaves a process that ends without a stop as well."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import weakref
from typing import Protocol

from app.pools.errors import LeaseLeaked
from app.pools.zmq_pool.context import shared_context

log = logging.getLogger(__name__)

_TIMEOUT = 2.0
_AFTER_ALL_ELSE = -1000


class Stoppable(Protocol):
    """A pool."""

    def stop(self, timeout: float = ...) -> None:
        """Stop it; does nothing if it is stopped."""


_started: weakref.WeakSet[Stoppable] = weakref.WeakSet()
_told: set[int] = set()
"""The processes that were told to stop them: this one, and those that it was forked from."""


def stop_at_exit(pool: Stoppable) -> None:
    """Have ``pool`` stopped when the process ends."""
    if not _told:
        atexit.register(_stop_all)
    if os.getpid() not in _told:
        _told.add(os.getpid())
        # A child that multiprocessing has forked ends without atexit, and has forgotten its parent's finalisers.
        if (multiprocessing := sys.modules.get("multiprocessing.util")) is not None:
            multiprocessing.Finalize(None, _stop_all, exitpriority=_AFTER_ALL_ELSE)
    _started.add(pool)


def _stop_all() -> None:
    for pool in list(_started):
        try:
            pool.stop(_TIMEOUT)
        except LeaseLeaked as leaked:
            log.warning("%s", leaked)
    shared_context.finish(_TIMEOUT)
