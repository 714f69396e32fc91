"""An echo server in a process of its own, to be killed, stopped and restarted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_SERVER = """
import os, sys, zmq
server = zmq.Context().socket(getattr(zmq, sys.argv[1]))
server.linger = 0
server.bind(sys.argv[2])
log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
print(server.last_endpoint.decode(), flush=True)
while True:
    frames = server.recv_multipart()
    os.write(log, frames[-1] + b"\\n")
    if frames[-1] == b"tell":
        print("told", flush=True)
    elif not frames[-1].startswith(b"silence") or sys.argv[1] == "REP":
        server.send_multipart(frames)
"""


class EchoProcess:
    """A REP or ROUTER that returns what it gets; a ROUTER answers neither ``tell`` nor what begins with ``silence``.

    Args:
        kind: which of the two.
        endpoint: where it listens.
        log: a file to write each request into, a line each, before it is answered.
    """

    def __init__(self, kind: str = "REP", endpoint: str = "tcp://127.0.0.1:*", log: Path | None = None) -> None:
        self.kind = kind
        self.endpoint = endpoint
        self._log = log
        self.start()

    def start(self) -> None:
        """Start, at the endpoint of the last time."""
        log = self._log or "/dev/null"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, self.kind, self.endpoint, str(log)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.endpoint = self._process.stdout.readline().strip()
        assert self.endpoint, "the echo server did not start"

    def executed(self) -> list[bytes]:
        """Return the requests that reached the server, in all its lives, answered or not."""
        assert self._log is not None
        return self._log.read_bytes().split(b"\n")[:-1]

    def wait_until_told(self) -> None:
        """Return when it has got a ``tell``."""
        assert self._process.stdout is not None
        assert "told\n" == self._process.stdout.readline()

    def kill(self) -> None:
        """End at once, as by SIGKILL."""
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def freeze(self) -> None:
        """Stop executing, with connections open; return when it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        """Go on."""
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def echo_process(kind: str = "REP", log: Path | None = None) -> Iterator[EchoProcess]:
    """Run an echo server; it is killed at the end."""
    server = EchoProcess(kind, log=log)
    try:
        yield server
    finally:
        server.kill()
