"""Peers for the ZMQ tests: real sockets on a context of their own, served by a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import zmq

from tests.support.waiting import eventually

Handler = Callable[[list[bytes]], list[bytes] | None]


def _bound(server: zmq.Socket[bytes], endpoint: str) -> bool:
    """Bind, unless another test has the port at this moment."""
    try:
        server.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno != zmq.EADDRINUSE:
            raise
        return False
    return True


@contextlib.contextmanager
def replier(handle: Handler = lambda frames: frames, endpoint: str = "tcp://127.0.0.1:*") -> Iterator[str]:
    """Serve a ROUTER that answers each request with ``handle(frames)``, or not at all for ``None``.

    A ROUTER, so that one unanswered request does not keep it from the next one, as it would a REP.
    """
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    server.linger = 0
    eventually(lambda: _bound(server, endpoint))
    where = server.last_endpoint.decode()
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            if server.poll(20):
                frames = server.recv_multipart()
                split = frames.index(b"")
                envelope, body = frames[:split], frames[split + 1 :]
                answer = handle(body)
                if answer is not None:
                    server.send_multipart([*envelope, b"", *answer])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield where
    finally:
        stop.set()
        thread.join(10)
        server.close(0)
        context.term()
