"""The other side of ``bench_zmq``, in a process of its own: echoes and sinks that cost as little as can be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from app.pools.zmq_pool import KeyPair


@contextmanager
def serving(kind: str, endpoint: str = "tcp://127.0.0.1:*", keys: KeyPair | None = None) -> Iterator[str]:
    """Run ``echo`` (a ROUTER within libzmq's proxy), ``rep`` (a default REP) or ``sink`` (a SUB to everything)."""
    secret = keys.secret.get_secret_value() if keys else ""
    process = subprocess.Popen(
        [sys.executable, __file__, kind, endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{secret}\n")
    process.stdin.flush()
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait(10)


def serve(kind: str, endpoint: str) -> None:
    types = {"echo": zmq.ROUTER, "rep": zmq.REP, "sink": zmq.SUB}
    server = zmq.Context().socket(types[kind])
    server.linger = 0
    secret = sys.stdin.readline().strip()
    if secret:
        server.curve_server, server.curve_secretkey = 1, secret.encode()
    if kind == "sink":
        server.rcvhwm = 0
        server.subscribe(b"")
    server.bind(endpoint)
    print(server.last_endpoint.decode(), flush=True)
    if kind == "echo":
        zmq.proxy(server, server)
    while kind == "rep":
        server.send(server.recv())
    while True:
        server.recv()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
