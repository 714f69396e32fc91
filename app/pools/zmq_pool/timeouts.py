"""The errors of a leased socket: the pool's, which code written for pyzmq catches as ``zmq.Again``."""

from __future__ import annotations

import zmq

from app.pools.errors import ConnectionLost, NoReply, NotSent


class _Again(zmq.Again):
    """``zmq.Again`` with a message of its own."""

    # As every exception has them; those of an `OSError`, which the pool's timeouts are, get lost on the way to
    # another process.
    errno: int = zmq.EAGAIN
    strerror: str = ""

    def __init__(self, message: str) -> None:
        zmq.ZMQError.__init__(self, zmq.EAGAIN, message)  # that of `zmq.Again` takes no message

    def __str__(self) -> str:
        return self.strerror


class SendTimedOut(_Again, NotSent):  # type: ignore[misc]  # both bases describe `strerror`
    """``NotSent`` from a leased socket; code written for ``zmq.Again`` catches it too."""


class ReplyTimedOut(_Again, NoReply):  # type: ignore[misc]  # both bases describe `strerror`
    """``NoReply`` from a leased socket; code written for ``zmq.Again`` catches it too."""


class ReplyLost(_Again, ConnectionLost, NoReply):  # type: ignore[misc]  # the bases describe `strerror`
    """``NoReply`` from a leased socket whose endpoint went down meanwhile; ``ConnectionLost`` as well."""

    def __init__(self, endpoint: str, why: str) -> None:
        self.endpoint = endpoint
        self.maybe_executed = True
        super().__init__(f"{endpoint} went down before the reply came: {why}. It may have executed the request")
