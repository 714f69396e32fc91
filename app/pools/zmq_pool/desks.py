"""The desks of a pool: one for each configuration, from its first use until nobody uses it any more."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container

from app.pools.zmq_pool.config import SocketConfig
from app.pools.zmq_pool.desk import Desk


class Desks:
    """Opens desks and forgets them: a service may meet new endpoints for ever. The pool's lock guards what changes.

    Args:
        make: makes the desk of a configuration.
    """

    def __init__(self, make: Callable[[SocketConfig], Desk]) -> None:
        self._make = make
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._open: dict[SocketConfig, Desk] = {}
        # Who had looked one up before it was forgotten may use it all the same, and keeps it alive.
        self._forgotten: weakref.WeakSet[Desk] = weakref.WeakSet()

    def get(self, config: SocketConfig) -> Desk | None:
        """Return the desk of a configuration, if it is open."""
        return self._open.get(config)

    def open(self, config: SocketConfig) -> Desk:
        """Return the desk of a configuration, a new one if there is none."""
        desk = self._open.get(config)
        if desk is None:
            desk = self._open[config] = self._make(config)
        return desk

    def open_ones(self) -> list[Desk]:
        """Return those of configurations in use."""
        return list(self._open.values())

    def all(self) -> list[Desk]:
        """Return every one that anybody may still use."""
        return [*self._open.values(), *self._forgotten]

    def used(self) -> list[Desk]:
        """Return those that have figures to show."""
        return [*self._open.values(), *(desk for desk in self._forgotten if not desk.bucket.deserted)]

    def forget_deserted(self, spared: Container[SocketConfig]) -> list[Desk]:
        """Forget those that nobody has used for the idle time, ``spared`` ones excepted.

        Returns:
            those forgotten, now and before, whose endpoints need not be watched any more.
        """
        for desk in self.open_ones():
            if desk.forgettable and desk.config not in spared:
                del self._open[desk.config]
                self._forgotten.add(desk)
        return [desk for desk in self._forgotten if desk.forgettable]

    def vacate(self, config: SocketConfig) -> bool:
        """Have other configurations that bind the same endpoint, and do not use it, give it up.

        Returns:
            whether one did.
        """
        others = [desk for desk in self.open_ones() if desk.config.bind and desk.config != config]
        return any(desk.vacate() for desk in others if desk.config.endpoint == config.endpoint)
