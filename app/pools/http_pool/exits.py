"""The end of a process that has not stopped its pools: their idle connections are closed.

The interpreter would, but may report each as unclosed, by how it takes its modules apart.
"""

from __future__ import annotations

import atexit
import weakref
from typing import Protocol


class Idler(Protocol):
    """A pool."""

    def close_idle(self) -> None:
        """Close the idle connections of threads."""


_pools: weakref.WeakSet[Idler] = weakref.WeakSet()


def close_at_exit(pool: Idler) -> None:
    """Have the idle connections of ``pool`` closed when the process ends."""
    _pools.add(pool)


@atexit.register
def _close_all() -> None:
    for pool in list(_pools):
        pool.close_idle()
