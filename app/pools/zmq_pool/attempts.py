"""Attempts to open a socket while libzmq still has to close others, which it does in the background.

Two things may be missing for a moment: our own endpoint, after its socket was closed, and descriptors, after many
sockets were discarded in a row.
"""

from __future__ import annotations

import errno
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import zmq

from app.pools.errors import EndpointBusy, OutOfDescriptors
from app.pools.zmq_pool.config import FOREVER

PAUSE = 0.005
"""Seconds to wait before a socket is tried to be opened again."""

_REBIND_WITHIN = 5.0
_REAPED_WITHIN = 5.0

T = TypeVar("T")


class Attempt:
    """An attempt to open a socket, of as many tries as its time allows.

    Args:
        label: the configuration's.
        within: seconds until it fails, if that is less than libzmq is given.
        vacate: has others give up the endpoint, and returns whether one did.
    """

    def __init__(self, label: str, *, within: float = FOREVER, vacate: Callable[[], bool] = bool) -> None:
        self._label = label
        self._within = min(within, _REAPED_WITHIN)
        self._vacate = vacate
        self._began = self._tried_at = time.monotonic()
        self._vacated_at = -FOREVER

    def make(self, open_now: Callable[[], T], freed_at: float = -FOREVER) -> T | None:
        """Return what ``open_now`` opens, or ``None`` if it is to be tried again after ``PAUSE``.

        Args:
            open_now: tries to open it.
            freed_at: when a socket of our own at the endpoint was closed last, in monotonic seconds.

        Raises:
            EndpointBusy: the endpoint to bind is taken, and not by what is being closed.
            OutOfDescriptors: there were none for all of the attempt.
        """
        self._tried_at = time.monotonic()
        try:
            return open_now()
        except EndpointBusy:
            if self._vacate():
                self._vacated_at = time.monotonic()
            elif time.monotonic() >= max(freed_at, self._vacated_at) + _REBIND_WITHIN:
                raise
        except (zmq.ZMQError, OSError, OutOfDescriptors) as error:
            if not out_of_descriptors(error):
                raise
            if self.seconds >= self._within:
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                raise OutOfDescriptors(self._label, self.seconds, limit) from error
        return None

    @property
    def seconds(self) -> float:
        """For how long it has gone on."""
        return time.monotonic() - self._began

    @property
    def abandoned(self) -> bool:
        """Whether nobody has tried for so long that the next try is another attempt."""
        return time.monotonic() >= self._tried_at + _REAPED_WITHIN


def out_of_descriptors(error: zmq.ZMQError | OSError | OutOfDescriptors) -> bool:
    """Say whether a socket, or a file for it, could not be opened because the process may have no more of them."""
    return isinstance(error, OutOfDescriptors) or error.errno == errno.EMFILE
