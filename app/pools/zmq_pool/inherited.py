"""A socket that a forked child inherited: its parent's, and of no use here."""

from __future__ import annotations

from typing import Any

from app.pools.core import forks
from app.pools.errors import NotSent
from app.pools.zmq_pool.owner import USES
from app.pools.zmq_pool.sockets import LeanSocket


class InheritedSocket(LeanSocket):
    """What a leased socket becomes in a forked child, whose messages would mix with the parent's on the wire."""

    def __getattribute__(self, name: str) -> Any:
        if name in USES:
            raise NotSent(
                f"the socket of {self.config.label} belongs to the process that was forked, which goes on using it. "
                f"Lease one in this process"
            )
        return super().__getattribute__(name)


def disinherit(socket: LeanSocket) -> None:
    """Make ``socket`` unusable in this process, without closing it."""
    object.__setattr__(socket, "__class__", InheritedSocket)  # the lessee may hold it, and go on with its block
    forks.bury(socket)
