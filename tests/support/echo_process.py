"""An echo server in a process of its own, to be killed, stopped and restarted."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

_SERVER = """
import sys, zmq
server = zmq.Context().socket(getattr(zmq, sys.argv[1]))
server.linger = 0
server.bind(sys.argv[2])
print(server.last_endpoint.decode(), flush=True)
while True:
    frames = server.recv_multipart()
    if frames[-1] != b"silence" or sys.argv[1] == "REP":
        server.send_multipart(frames)
"""


class EchoProcess:
    """A REP or ROUTER that returns what it gets; a ROUTER does not answer ``silence``."""

    def __init__(self, kind: str = "REP", endpoint: str = "tcp://127.0.0.1:*") -> None:
        self.kind = kind
        self.endpoint = endpoint
        self.start()

    def start(self) -> None:
        """Start, at the endpoint of the last time."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, self.kind, self.endpoint], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.endpoint = self._process.stdout.readline().strip()
        assert self.endpoint, "the echo server did not start"

    def kill(self) -> None:
        """End at once, as by SIGKILL."""
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def freeze(self) -> None:
        """Stop executing, with connections open."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def echo_process(kind: str = "REP") -> Iterator[EchoProcess]:
    """Run an echo server; it is killed at the end."""
    server = EchoProcess(kind)
    try:
        yield server
    finally:
        server.kill()
