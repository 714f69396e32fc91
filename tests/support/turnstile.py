"""A TCP server that accepts connections and closes them at once, as a load balancer without a server behind it does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Turnstile:
    """Listens on a free port of 127.0.0.1.

    Attributes:
        endpoint: where.
        accepted: how many connections it has accepted, and closed.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted = 0

    def serve(self) -> None:
        """Serve until ``end``."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.close()
                self.accepted += 1

    def end(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def turnstile() -> Iterator[Turnstile]:
    """Run one for the length of a block."""
    server = Turnstile()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.end()
        thread.join(10)
