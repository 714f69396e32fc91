"""The check that nobody but its lessee's thread uses a leased socket: for development, because each use pays for it."""

from __future__ import annotations

import threading
from typing import Any

from app.pools.core.entries import Entry
from app.pools.errors import ForeignThread
from app.pools.zmq_pool.sockets import LeanSocket

USES = frozenset({
    "bind", "connect", "disconnect", "get", "getsockopt", "poll", "recv", "recv_into", "recv_json", "recv_multipart",
    "recv_pyobj", "recv_serialized", "recv_string", "send", "send_json", "send_multipart", "send_pyobj",
    "send_serialized", "send_string", "set", "setsockopt", "subscribe", "unbind", "unsubscribe",
})  # fmt: skip
"""What a lessee does with a socket; all but ``close``, which the pool calls in whichever thread stops it."""


class _OwnerChecked(LeanSocket):
    """A socket that its lessee's thread alone may use; libzmq would corrupt its memory, now and then."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.__dict__["owner"] = threading.current_thread()  # it opens the socket to lease it

    def __getattribute__(self, name: str) -> Any:
        if name in USES:
            owner = super().__getattribute__("__dict__").get("owner")
            if owner is not None and owner is not threading.current_thread():
                raise ForeignThread(self.config.label, owner.name, threading.current_thread().name)
        return super().__getattribute__(name)


def owner_checked(kind: type[LeanSocket]) -> type[LeanSocket]:
    """Return a kind of socket like ``kind`` that checks who uses it."""
    return type(f"OwnerChecked{kind.__name__}", (_OwnerChecked, kind), {})


def claim(entry: Entry[LeanSocket], now: float) -> bool:
    """Make the thread that checks ``entry`` out the owner of its socket; a bucket's ``usable``, which all are."""
    entry.resource.__dict__["owner"] = threading.current_thread()
    return True


def disown(socket: LeanSocket) -> None:
    """Let any thread use a socket that leaves the pool."""
    socket.__dict__.pop("owner", None)
