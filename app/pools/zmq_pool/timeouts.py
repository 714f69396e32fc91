"""The errors of a leased socket: the pool's, which code written for pyzmq catches as ``zmq.Again``."""

from __future__ import annotations

import zmq

from app.pools.errors import ConnectionLost, NoReply, NotSent


class SendTimedOut(NotSent, zmq.Again):  # type: ignore[misc]  # both bases describe `strerror`
    """``NotSent`` from a leased socket; code written for ``zmq.Again`` catches it too."""

    def __init__(self, message: str) -> None:
        zmq.ZMQError.__init__(self, zmq.EAGAIN, message)

    def __str__(self) -> str:
        return str(self.strerror)


class ReplyTimedOut(NoReply, zmq.Again):  # type: ignore[misc]  # both bases describe `strerror`
    """``NoReply`` from a leased socket; code written for ``zmq.Again`` catches it too."""

    def __init__(self, message: str) -> None:
        zmq.ZMQError.__init__(self, zmq.EAGAIN, message)

    def __str__(self) -> str:
        return str(self.strerror)


class ReplyLost(ConnectionLost, NoReply, zmq.Again):  # type: ignore[misc]  # the bases describe `strerror`
    """``NoReply`` from a leased socket whose endpoint went down meanwhile; ``ConnectionLost`` as well."""

    def __init__(self, endpoint: str, why: str) -> None:
        self.endpoint = endpoint
        self.maybe_executed = True
        message = f"{endpoint} went down before the reply came: {why}. It may have executed the request"
        zmq.ZMQError.__init__(self, zmq.EAGAIN, message)

    def __str__(self) -> str:
        return str(self.strerror)
